"""The page on the papers, followed from its first command to its last with tiny stand-ins for models and the Hub."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from datasets import Dataset, Image
from documentation import snippets
from recipe_runs import run_recipe
from small_datasets import released_records
from transformers import AutoModelForCausalLM, AutoTokenizer

from unicorn_hf import cli
from unicorn_hf.cli.train import find_recipe
from unicorn_hf.sandbox.world import draw_all, split_scenes

SNIPPETS = [snippet for snippet in snippets() if snippet.page == "reproduce.md"]
NOT_OURS = {"pip", "vllm", "curl", "unzip", "lmms-eval"}
# A CPU in place of GPUs, two steps in place of thousands.
SMALL = "--use_cpu true --bf16 false --dtype float32 --max_steps 2 --per_device_train_batch_size 2 --report_to none"
SMALL += " --gradient_accumulation_steps 1 --dataloader_num_workers 0 --save_strategy no --logging_steps 1"


@pytest.fixture
def server(tmp_path_factory):
    """The address of a server that answers as a model would."""
    port_file = tmp_path_factory.mktemp("server") / "port"
    script = Path(__file__).parents[1] / "synthesis" / "llm_server.py"
    process = subprocess.Popen([sys.executable, str(script), "--port-file", str(port_file), "--lifetime", "900"])
    try:
        until = time.monotonic() + 120
        while not port_file.exists():
            assert process.poll() is None and time.monotonic() < until, "the test server did not start"
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port_file.read_text()}/v1"
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """What the page takes from elsewhere: pictures, the released files, a benchmark."""
    scenes = split_scenes(0, 4, 8, 4).pictures
    for name in ("val2017", "photos"):
        (tmp_path / name).mkdir()
        for number, picture in enumerate(draw_all(scenes, seed=0)):
            picture.save(tmp_path / name / f"{number}.png")
    images = [{"id": number, "image": f"{number}.png"} for number in range(len(scenes))]
    texts = [{"id": f"t{number}", "text": scene.seed()} for number, scene in enumerate(scenes)]
    (tmp_path / "data.json").write_text(json.dumps({"images": images, "texts": texts}))
    (tmp_path / "released").mkdir()
    captions = [scene.seed() for scene in split_scenes(1, 4, 24, 4).pictures]
    records = [{**record, "caption": text} for record, text in zip(released_records(24), captions, strict=True)]
    for name in ("Pretrain.json", "Instruction.json"):
        (tmp_path / "released" / name).write_text(json.dumps(records))
    (tmp_path / "benchmark" / "data").mkdir(parents=True)
    questions = {"question": ["Is there a dog?", "Is there a red square?"], "answer": ["no", "yes"]}
    pictures = [str(tmp_path / "photos" / f"{number}.png") for number in range(2)]
    rows = Dataset.from_dict({"image": pictures, **questions}).cast_column("image", Image())
    rows.to_parquet(tmp_path / "benchmark" / "data" / "test-00000-of-00001.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def language_model(tiny, tmp_path_factory):
    """The tiny language model with Llama's end token."""
    folder = tmp_path_factory.mktemp("language_model")
    tokenizer = AutoTokenizer.from_pretrained(tiny.language_model)
    tokenizer.add_tokens("<|end_of_text|>", special_tokens=True)
    model = AutoModelForCausalLM.from_pretrained(tiny.language_model)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for each in (tokenizer, model):
        each.save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
def test_the_page_leads_from_seeds_to_a_score(folder, server, language_model, monkeypatch):
    stand_ins = {
        "http://localhost:8000/v1": server,
        "Yu2020/Unicorn": "released",
        "lmms-lab/POPE": "benchmark",
        "Qwen/Qwen2.5-72B-Instruct": "a-model",
        "Qwen/Qwen2.5-7B-Instruct": "a-model",
    }
    made = set()
    for snippet in SNIPPETS:
        if snippet.language == "python":
            exec(snippet.code, {})
            seeds = (folder / "seeds.txt").read_text().splitlines()
            assert len(seeds) == len(set(seeds)) == 34_000
            (folder / "seeds.txt").write_text("\n".join(seeds[::4000]))
        for program, *words in snippet.commands() if snippet.language == "bash" else ():
            if program in NOT_OURS:
                continue
            assert program == "unicorn-hf", snippet
            words = [stand_ins.get(word, word) for word in words]
            words = ["sandbox" if word.startswith(("open_clip/", "llm2clip/")) else word for word in words]
            output = words[next(place for place, word in enumerate(words) if word in ("-o", "--output_dir")) + 1]
            if (folder / output).exists():  # made for a section above; each section has a folder of its own
                (folder / output).rename(folder / f"{output}-{len(made)}")
            if words[0] == "train":
                train(words[1], words[2:], folder, language_model)
            else:
                run(words, monkeypatch)
            made.add((str(snippet), output))
            assert (folder / output).exists() or "--dry-run" in words, (snippet, words)
    assert len(made) > 25
    report = json.loads(next((folder / "pope").glob("*.json")).read_text())
    assert (report["questions"], report["transfer"]) == (2, "realign")


def train(stage: str, words: list[str], folder: Path, language_model: str) -> None:
    """As `unicorn-hf train`, in a process that has its libraries already."""
    options = dict(zip(words[::2], words[1::2], strict=True))
    del options["--accelerate-config"]
    options["--config"] = str(find_recipe(Path(options["--config"])))
    options.setdefault("--model_name_or_path", language_model)
    log = folder / f"train-{time.monotonic_ns()}.log"
    (status,) = run_recipe(stage, [word for pair in options.items() for word in pair] + SMALL.split(), log)
    assert status == 0, log.read_text()[-3000:]


def run(words: list[str], monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["unicorn-hf", *words])
    try:
        cli.main()
    except SystemExit as end:
        assert not end.code, words
