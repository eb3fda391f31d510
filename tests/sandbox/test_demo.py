import json
import os
import signal
import subprocess
import sys
import time

import pytest
from datasets import load_dataset
from PIL import Image

from unicorn_hf import InputError
from unicorn_hf.sandbox.demo import CONDITIONS, demo


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """A fast demo that is killed when its datasets are there, and then goes on to its end."""
    folder = tmp_path_factory.mktemp("demo") / "output"
    command = [sys.executable, "-m", "unicorn_hf", "demo", "--fast", "--output", str(folder)]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while not (folder / "6-datasets").exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.2)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    kept = modified(folder)
    assert "6-datasets" in kept and "9-evaluation" not in kept
    demo(folder, fast=True)
    assert {name: modified(folder)[name] for name in kept} == kept
    return folder


def modified(folder):
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/result.txt")}


def test_the_table_has_every_condition_and_kind_of_question(output):
    table = json.loads((output / "9-evaluation" / "table.json").read_text())
    assert list(table) == list(CONDITIONS)
    assert all(0 <= value <= 1 for row in table.values() for value in row.values())
    assert len(json.loads((output / "9-evaluation" / "answers.json").read_text())["realign"]) == 3 * 40


def test_the_sheet_is_a_picture(output):
    with Image.open(output / "9-evaluation" / "answers.png") as sheet:
        assert sheet.size == (1200, 620)


def test_both_configurations_are_read_by_load_dataset(output):
    pretrain = load_dataset(str(output / "6-datasets" / "realign"), "unicorn-1.2m", split="train")
    instruction = load_dataset(str(output / "6-datasets" / "realign"), "unicorn-471k-instruction", split="train")
    assert {"id", "caption", "image_embeds"} <= set(pretrain.column_names)
    assert set(instruction.column_names) == {"id", "caption", "task", "messages", "image_embeds"}
    assert instruction[0]["messages"][0]["content"].startswith("<image>\n")
    assert pretrain.features["image_embeds"].length == 128


def test_training_moved_what_its_stage_trains_and_nothing_else(output):
    from transformers import AutoModelForImageTextToText

    models = output / "8-models" / "realign"
    first, second = (AutoModelForImageTextToText.from_pretrained(models / stage) for stage in ("pretrain", "finetune"))
    untouched = AutoModelForImageTextToText.from_pretrained(output / "8-models" / "none" / "pretrain")
    one, other, tuned = (model.state_dict() for model in (first, untouched, second))
    projector = [name for name in one if "multi_modal_projector" in name]
    language = [name for name in one if "language_model" in name]
    assert projector and language
    assert all((one[name] == other[name]).all() for name in language)
    assert any((one[name] != other[name]).any() for name in projector)
    assert all((one[name] != tuned[name]).any() for name in language if name.endswith("proj.weight"))


def test_the_model_says_what_its_vectors_are(output):
    config = json.loads((output / "8-models" / "realign" / "finetune" / "config.json").read_text())
    assert (config["image_encoder"], config["transfer"], config["embed_dim"]) == ("sandbox", "realign", 128)
    assert {"AutoConfig", "AutoModel", "AutoModelForImageTextToText"} <= set(config["auto_map"])


def test_a_second_run_keeps_every_step_and_says_so(output, capsys):
    before = modified(output)
    demo(output, fast=True)
    assert modified(output) == before
    assert capsys.readouterr().out.count("(kept)") == 10


def test_another_size_in_the_same_folder_is_refused(output):
    with pytest.raises(InputError, match="another size or seed"):
        demo(output)


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(InputError, match="not an empty folder"):
        demo(tmp_path, fast=True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
