"""The real lmms-eval runs a model on local tasks, and gets what the model says when it is asked directly."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from unicorn_hf.evaluation.images import answer, encode_images

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lmms_eval") is None, reason="lmms-eval is not installed: pip install 'unicorn-hf[eval]'"
)

COLOURS = ["red", "green", "blue", "white"]
QUESTIONS = ["what color is the image ?", "is the first image red ?"] * 4
TASK = """
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
task: {name}
doc_to_visual: !function visuals.images
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
{rest}
metadata:
  - version: 0.0
"""
WRITTEN = """
output_type: generate_until
generation_kwargs: {max_new_tokens: 8, temperature: 0, until: [" the"]}
metric_list:
  - metric: exact_match
    aggregation: mean
"""
CHOSEN = f"""
output_type: multiple_choice
doc_to_choice: {json.dumps(COLOURS)}
metric_list:
  - metric: acc
"""


@pytest.fixture(scope="module")
def samples(model_folder, with_images_of_two, tmp_path_factory):
    """What lmms-eval logged of both tasks: name -> samples in the order of the data."""
    folder = tmp_path_factory.mktemp("lmms")
    with_images_of_two.to_parquet(folder / "data.parquet")
    (folder / "tasks").mkdir()
    (folder / "tasks" / "visuals.py").write_text("def images(doc):\n    return doc['images']\n")
    for name, rest in (("written", WRITTEN), ("chosen", CHOSEN)):
        task = TASK.format(data=folder / "data.parquet", name=name, rest=rest)
        (folder / "tasks" / f"{name}.yaml").write_text(task)
    command = [sys.executable, "-m", "lmms_eval", "--model", "unicorn"]
    command += ["--model_args", f"pretrained={model_folder},device=cpu,dtype=float32", "--batch_size", "3"]
    command += ["--include_path", "tasks", "--tasks", "written,chosen", "--log_samples", "--output_path", "out"]
    result = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    logged = {}
    for name in ("written", "chosen"):
        (path,) = (folder / "out").rglob(f"*_samples_{name}.jsonl")
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        logged[name] = sorted(rows, key=lambda row: row["doc_id"])
    return logged


@pytest.fixture(scope="module")
def with_images_of_two():
    """Eight questions, about one image and about two by turns, and the last about none."""
    import datasets
    from PIL import Image

    images = [Image.new("RGB", (64, 64), colour) for colour in COLOURS]
    shown = [[images[row // 2], images[row % 4]][: 1 + row % 2] for row in range(7)] + [[]]
    answers = [COLOURS[row // 2] for row in range(8)]
    dataset = datasets.Dataset.from_dict({"question": QUESTIONS, "answer": answers, "images": shown})
    return dataset.cast_column("images", datasets.List(datasets.Image()))


def test_lmms_eval_gets_the_answers_that_the_model_gives_one_by_one(samples, model_and_processor, with_images_of_two):
    for sample, row in zip(samples["written"], with_images_of_two, strict=True):
        vectors = encode_images(*model_and_processor, row["images"])
        said = answer(*model_and_processor, row["question"], vectors, max_new_tokens=8)
        assert sample["filtered_resps"] == said.split(" the")[0].strip()
    assert len({sample["filtered_resps"] for sample in samples["written"]}) > 2


def test_lmms_eval_chooses_the_option_of_the_smallest_loss(samples, model_and_processor, with_images_of_two):
    model, processor = model_and_processor
    for sample, row in zip(samples["chosen"], with_images_of_two, strict=True):
        vectors = encode_images(model, processor, row["images"])
        image = "<image>" * len(vectors) + "\n" if len(vectors) else ""
        expected = []
        for colour in COLOURS:
            chat = f"<|user|>{image}{row['question']}<|assistant|> {colour}"
            inputs = processor(text=chat, image_embeds=vectors if len(vectors) else None, return_tensors="pt")
            size = len(processor.tokenizer(f" {colour}")["input_ids"])
            labels = inputs["input_ids"].clone()
            labels[:, :-size] = -100
            with torch.inference_mode():
                expected.append(float(model(**inputs, labels=labels).loss))
        losses = [float(loss) for loss, _ in sample["filtered_resps"]]
        np.testing.assert_allclose(losses, expected, atol=1e-4)
        assert sample["acc"] == (COLOURS[int(np.argmin(expected))] == row["answer"])
