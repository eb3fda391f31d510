"""A tiny language model, tiny data, and the curves that three ways to train give on them."""

import importlib.util
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from run_settings import LORA, PREFER_LORA, SETTINGS
from small_datasets import captions, conversations, preferences

from unicorn_hf.data.dataset_folder import write_dataset
from unicorn_hf.sandbox.language_model import train_language_model

STAGES = {"lora": "finetune", "prefer lora": "prefer"}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Folders: `language_model`, `captions`, `conversations`, `preferences`."""
    folder = tmp_path_factory.mktemp("tiny")
    with_captions = captions(120)
    vectors = with_captions.select(range(0, 120, 3)).flatten_indices().data.column("image_embeds").combine_chunks()
    turns, pairs = (
        rows.add_column("image_embeds", vectors, feature=with_captions.features["image_embeds"])
        for rows in (conversations(40), preferences(40))
    )
    provenance = {"image_embeds": {"encoder": "sandbox", "embed_dim": 16, "transfer": "realign"}}
    write_dataset(with_captions, folder / "captions", title="Captions", provenance=provenance)
    write_dataset(turns, folder / "conversations", title="Conversations", provenance=provenance)
    write_dataset(pairs, folder / "preferences", title="Preferences", provenance=provenance)
    texts, messages = with_captions["caption"][:], turns["messages"][:]
    paraphrases = list(zip(texts[::2], texts[1::2], strict=True))
    sizes = {"hidden_size": 64, "num_layers": 2, "steps": 1, "seed": 0}
    train_language_model(messages, messages, paraphrases, folder / "language_model", **sizes)
    names = ("language_model", "captions", "conversations", "preferences")
    return SimpleNamespace(**{name: folder / name for name in names})


@pytest.fixture(scope="session")
def recipe(tiny, tmp_path_factory):
    """Run a way to train: `pretrain`, `finetune`, `lora`, `prefer`, `prefer lora`; see `recipe_runs.run_recipe`."""
    pytest.importorskip("trl", reason="the recipes need the extra 'train'")
    pytest.importorskip("peft", reason="the recipes need the extra 'train'")
    before = dict(os.environ)
    # For the process that the runs are forked from.
    hub_cache = tmp_path_factory.mktemp("hub")
    os.environ |= {
        "HF_HUB_CACHE": str(hub_cache),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), before.get("PYTHONPATH", "")])
    from recipe_runs import run_recipe

    folders = {}

    def run(way, output_dir, log=None, **options):
        arguments = SETTINGS | {"output_dir": output_dir}
        if way == "pretrain":
            arguments |= {"model_name_or_path": tiny.language_model, "dataset": tiny.captions, "learning_rate": 1e-2}
        elif way in ("finetune", "lora"):
            arguments |= {"model_name_or_path": folders.get("pretrain"), "dataset": tiny.conversations}
            arguments |= {"learning_rate": 2e-3} | (LORA if way == "lora" else {})
        else:
            arguments |= {"model_name_or_path": folders.get("finetune"), "dataset": tiny.preferences}
            arguments |= {"learning_rate": 2e-3} | (PREFER_LORA if way == "prefer lora" else {})
        arguments |= options.pop("arguments", {})
        words = [word for name, value in arguments.items() for word in (f"--{name}", value)]
        log = log or Path(f"{output_dir}.log")
        status = run_recipe(STAGES.get(way, way), words, log, **options)
        return SimpleNamespace(status=status, log=log.read_text(), output_dir=Path(output_dir))

    run.folders, run.hub_cache = folders, hub_cache
    yield run
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def whole(recipe, tmp_path_factory):
    """Way to train -> its run, in one process and from beginning to end."""
    runs, folder = {}, tmp_path_factory.mktemp("whole")
    for way in ("pretrain", "finetune", "lora"):
        tracker = "tensorboard" if way == "pretrain" and importlib.util.find_spec("tensorboard") else "none"
        runs[way] = recipe(way, folder / way, arguments={"report_to": tracker})
        assert runs[way].status == [0], runs[way].log[-3000:]
        recipe.folders[way] = runs[way].output_dir
    return runs
