"""The README's Python runs as it stands, one block after the other."""

import re
from pathlib import Path

from unicorn_hf.sandbox.world import draw_all, split_scenes

ROOT = Path(__file__).parents[1]


def test_the_python_of_the_readme_runs(demo_output, tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 5
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for index, picture in enumerate(draw_all(split_scenes(0, 40, 40, 10).pictures, seed=0)):
        picture.save(tmp_path / "photos" / f"{index}.png")
    picture.save(tmp_path / "photo.png")
    (tmp_path / "stage-2").symlink_to(demo_output / "8-models" / "realign" / "finetune")
    write_questions(demo_output, tmp_path / "questions")
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "<image>\\n" in printed  # a conversation
    assert (tmp_path / "unicorn" / "README.md").is_file()


def write_questions(demo_output, folder):
    from datasets import concatenate_datasets

    from unicorn_hf.data.dataset_folder import write_dataset
    from unicorn_hf.data.sources import read_dataset

    questions = read_dataset(demo_output / "1-world" / "questions")
    vectors = read_dataset(demo_output / "4-embeddings" / "test").select_columns("image_embeds")
    rows = concatenate_datasets([questions, vectors.select(questions["picture"])], axis=1)
    write_dataset(rows, folder, title="Questions")
