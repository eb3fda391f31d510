import json
import re
import subprocess
import sys

import numpy as np
import pytest
from datasets import List, Value, load_dataset
from demo_run import modified
from other_versions import OTHERS
from PIL import Image

from unicorn_hf import InputError, load_encoder
from unicorn_hf.data.sources import read_dataset
from unicorn_hf.sandbox.demo import (
    CONDITIONS,
    FAST,
    FULL,
    LETTER,
    VALUE,
    compare_with_bound,
    demo,
    embed_pictures_of,
    leave_image_out,
    score_options,
)


def test_the_table_has_every_condition_and_kind_of_question(demo_output):
    table = json.loads((demo_output / "9-evaluation" / "table.json").read_text())
    assert list(table) == FAST.conditions == ["blind", "none", "realign"]
    assert list(CONDITIONS) == FULL.conditions
    assert all(0 <= value <= 1 for row in table.values() for value in row.values())
    assert len(json.loads((demo_output / "9-evaluation" / "answers.json").read_text())["realign"]) == 3 * 40


def test_a_value_may_be_right_where_its_letter_is_wrong():
    asked = "What color is it?\n(A) red\n(B) blue\n(C) gray"
    questions = [asked, "Where is it?\n(A) top left\n(B) center", asked, asked, "How many?"]
    expected = ["gray (C)", "top left (A)", "red (A)", "red (A)", "two"]
    answers = ["gray (B)", "top left (A)", "blue (B)", "", "one"]
    assert score_options(questions, answers, expected) == {VALUE: 2 / 4, LETTER: 2 / 4}


def test_the_language_model_knows_every_word_that_it_is_asked_and_answers(demo_output):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_output / "7-language-model" / "language-model")
    rows = read_dataset(demo_output / "3-instructions" / "instructions")
    chats = [leave_image_out(row)["messages"] for row in rows]
    captions = [f"{caption}{tokenizer.eos_token}" for caption in rows["caption"]]
    ids = tokenizer.apply_chat_template(chats, return_dict=True)["input_ids"] + tokenizer(captions)["input_ids"]
    assert not any(tokenizer.unk_token_id in row for row in ids)


def test_a_bound_below_a_transfer_is_called_no_bound():
    accuracy = {"blind": 0.3, "mean_shift": 0.7, "realign": 0.6, "paired": 0.65}
    assert "below mean shift: the models have not converged" in compare_with_bound(accuracy)
    assert "ReAlign reaches 80.0% of" in compare_with_bound({**accuracy, "paired": 0.75})


def test_every_caption_has_a_picture_of_its_own_for_the_bound(demo_output, tmp_path):
    captions = read_dataset(demo_output / "4-embeddings" / "captions").select(range(12))
    embed_pictures_of(captions, tmp_path / "paired", load_encoder("sandbox"), seed=0)
    paired = read_dataset(tmp_path / "paired")
    assert paired["id"][:] == captions["id"][:]
    assert paired.features["image_embeds"] == List(Value("float16"), length=128)
    same_scene = [row for row, seed in enumerate(captions["seed"]) if seed == captions[0]["seed"]]
    vectors = np.array(paired["image_embeds"])[same_scene].astype(np.float64)
    assert len(np.unique(vectors, axis=0)) == len(same_scene) > 1
    assert (vectors @ vectors.T).min() > 0.8  # of one scene, with noise


def test_a_run_that_fails_says_what_its_recipe_said(tmp_path):
    program = """
import sys
from pathlib import Path
from unicorn_hf.sandbox.training_runs import TrainingRun, train_all

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    run = TrainingRun("pretrain", folder / "missing", folder / "none", folder / "trained")
    train_all([[run]], max_steps=1, seed=0)
"""
    # In a process of its own: the server that forks the run would stay in this one, with this environment.
    (tmp_path / "program.py").write_text(program)
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path)]
    failed = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert re.search(r"RuntimeError: recipes/pretrain\.py .*none", failed.stderr), failed.stderr[-2000:]
    assert not (tmp_path / "trained").exists()


def test_the_sheet_is_a_picture(demo_output):
    with Image.open(demo_output / "9-evaluation" / "answers.png") as sheet:
        assert sheet.width == 1200 and 400 < sheet.height <= 720  # as high as the answers are


def test_both_configurations_are_read_by_load_dataset(demo_output):
    pretrain = load_dataset(str(demo_output / "6-datasets" / "realign"), "unicorn-1.2m", split="train")
    instruction = load_dataset(str(demo_output / "6-datasets" / "realign"), "unicorn-471k-instruction", split="train")
    assert {"id", "caption", "image_embeds"} <= set(pretrain.column_names)
    assert set(instruction.column_names) == {"id", "caption", "task", "messages", "image_embeds"}
    assert instruction[0]["messages"][0]["content"].startswith("<image>\n")
    assert pretrain.features["image_embeds"].length == 128


def test_training_moved_what_its_stage_trains_and_nothing_else(demo_output):
    import unicorn_hf.modeling  # noqa: F401  (adds Unicorn to the Auto classes)
    from transformers import AutoModelForImageTextToText

    models = demo_output / "8-models" / "realign"
    first, second = (AutoModelForImageTextToText.from_pretrained(models / stage) for stage in ("pretrain", "finetune"))
    untouched = AutoModelForImageTextToText.from_pretrained(demo_output / "8-models" / "none" / "pretrain")
    one, other, tuned = (model.state_dict() for model in (first, untouched, second))
    projector = [name for name in one if "multi_modal_projector" in name]
    language = [name for name in one if "language_model" in name]
    assert projector and language
    assert all((one[name] == other[name]).all() for name in language)
    assert any((one[name] != other[name]).any() for name in projector)
    assert all((one[name] != tuned[name]).any() for name in language if name.endswith("proj.weight"))


def test_the_model_says_what_its_vectors_are(demo_output):
    config = json.loads((demo_output / "8-models" / "realign" / "finetune" / "config.json").read_text())
    assert (config["image_encoder"], config["transfer"], config["embed_dim"]) == ("sandbox", "realign", 128)
    assert {"AutoConfig", "AutoModel", "AutoModelForImageTextToText"} <= set(config["auto_map"])


def test_a_second_run_keeps_every_step_and_says_so(demo_output, capsys):
    before = modified(demo_output)
    demo(demo_output, fast=True)
    assert modified(demo_output) == before
    said = capsys.readouterr().out
    assert said.count("(kept)") == 10
    assert "--fast only checks that every step runs: its models learn almost nothing" in said


def test_another_size_in_the_same_folder_is_refused(demo_output):
    with pytest.raises(InputError, match="another size or seed"):
        demo(demo_output)


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(InputError, match="not an empty folder"):
        demo(tmp_path, fast=True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("python", OTHERS or [None], ids=lambda python: python and python.parents[1].name)
def test_the_models_answer_the_same_under_other_versions(python, demo_output, tmp_path):
    if python is None:
        pytest.skip("no other environment: make test-oldest builds one")
    program = (
        "import sys; from pathlib import Path; from unicorn_hf.sandbox.demo import FAST, evaluate_models; "
        "evaluate_models(Path(sys.argv[1]), Path(sys.argv[2]), FAST.conditions)"
    )
    command = [python, "-c", program, tmp_path, demo_output]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    expected = json.loads((demo_output / "9-evaluation" / "table.json").read_text())
    assert json.loads((tmp_path / "table.json").read_text()) == expected
