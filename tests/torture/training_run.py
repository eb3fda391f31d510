"""Stage 1 on a tiny language model, with checkpoints, as a step whose power can be cut."""

import functools
import json
import os
import runpy
import sys
import traceback
from pathlib import Path

from small_datasets import captions, conversations

RECIPE = Path(__file__).parents[2] / "recipes" / "pretrain.py"
OPTIONS = {
    "max_steps": 4,
    "save_steps": 2,
    "save_total_limit": 2,
    "per_device_train_batch_size": 4,
    "logging_steps": 1,
    "use_cpu": "true",
    "bf16": "false",
    "gradient_checkpointing": "false",
    "disable_tqdm": "true",
    "report_to": "none",
    "resume_from_checkpoint": "true",
}


def make_language_model(folder: Path) -> None:
    """Save one, made in a process of its own: a fork of one that has trained cannot train."""
    child = os.fork()
    if child == 0:
        from unicorn_hf.sandbox.language_model import train_language_model

        try:
            texts, chats = captions(60)["caption"][:], conversations(4)["messages"][:]
            pairs = list(zip(texts[::2], texts[1::2], strict=True))
            train_language_model(chats, chats, pairs, folder, hidden_size=32, num_layers=1, steps=1, seed=0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, "no language model for the training's power cuts"


def train(material: Path, output: Path):
    words = {"model_name_or_path": material / "language_model", "dataset": material / "captions"}
    words |= {"output_dir": output} | OPTIONS
    return functools.partial(_run_recipe, [word for name, value in words.items() for word in (f"--{name}", str(value))])


def _run_recipe(words: list[str]) -> None:
    sys.argv = [str(RECIPE), *words]
    runpy.run_path(str(RECIPE), run_name="__main__")


def trained(output: Path) -> dict:
    """The weights, and the losses of all steps: of a run that went on as those of one that nothing disturbed."""
    weights, state = output / "model.safetensors", output / "checkpoint-4" / "trainer_state.json"
    if not (weights.is_file() and state.is_file()):
        return {}
    log = json.loads(state.read_text())["log_history"]
    losses = {entry["step"]: entry["loss"] for entry in log if "loss" in entry}
    return {"weights": weights.read_bytes(), "losses": losses, "files": sorted(path.name for path in output.iterdir())}


train.result = trained
