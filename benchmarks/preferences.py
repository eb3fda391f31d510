"""Does preference training reduce hallucinated objects, and what does it cost on other questions?

    python benchmarks/preferences.py [--output DIR] [--seeds 0 1 2]

The demo's ReAlign model of each seed is asked, before and after stage 3, whether things are in the image, as in POPE
(Li et al. 2023, arXiv 2305.10355). Half of the things are absent: random things of the world, or things that share a
color or a shape with something in the image (akin; POPE's adversarial questions are about things that often occur
together). The demo's own questions measure the effect on other questions. A third model is trained on the same right
answers without the wrong ones, by the same recipe. Finished work is kept and not repeated.
"""

import argparse
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
from datasets import Dataset, concatenate_datasets

from unicorn_hf import evaluate, publish, write_preferences
from unicorn_hf.data.sources import read_dataset
from unicorn_hf.data.staging import write_json
from unicorn_hf.sandbox.demo import demo, questions_with_vectors
from unicorn_hf.synthesis.scene import COLORS, SHAPES, parse_seed

MODELS = {
    "before": "stage 2",
    "right answers": "the right answers alone (loss_type sft)",
    "preferences": "right and wrong answers",
}
# Half of the pairs are about objects; the other half keeps the model's other answers.
MIX = {"object": 4, "color": 2, "count": 1, "relation": 1}
COLUMNS = {
    "accuracy": ("yes_no", "accuracy"),
    "F1": ("yes_no", "f1"),
    "yes": ("yes_no", "yes_ratio"),
    "neither": ("yes_no", "neither"),
    "accuracy, random": ("random", "accuracy"),
    "accuracy, akin": ("akin", "accuracy"),
    "the demo's questions": ("elsewhere", "accuracy"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output" / "sandbox_vqa")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    runs = []
    for seed in arguments.seeds:
        folder = arguments.output / f"seed-{seed}"
        demo(folder, seed=seed)
        runs.append(measure(folder, seed))
    write_json(dict(zip(arguments.seeds, runs, strict=True)), arguments.output / "preferences.json")
    print_table(runs)


def measure(demo_output: Path, seed: int) -> dict[str, dict]:
    """The results of one seed: model -> questions (yes-no, each kind of them, and the demo's) -> metric -> value."""
    folder = demo_output / "preferences"
    before, dataset = demo_output / "8-models" / "realign" / "finetune", folder / "dataset"
    if not dataset.exists():
        pairs = write_preferences(demo_output / "2-captions" / "captions", writer="grammar", seed=seed, mix=MIX)
        publish(demo_output / "5-transfers" / "moved" / "realign", None, dataset, preference=pairs)
    prefer(before, dataset, folder / "right answers", seed, "--loss_type", "sft", "--loss_weights", "1")
    prefer(before, dataset, folder / "preferences", seed)
    data = {"yes_no": ask_what_is_there(demo_output, seed), "elsewhere": questions_with_vectors(demo_output)}
    scores = {}
    for name in MODELS:
        model, scores[name] = before if name == "before" else folder / name, {}
        for asked, rows in data.items():
            output = folder / "answers" / name / asked
            if not output.exists():
                task = "yes-no" if asked == "yes_no" else "vqa"
                evaluate(model, rows, output, task=task, batch_size=256, baseline=False, description=f"{name}, {asked}")
            said = json.loads((output / "evaluation.json").read_text())
            kinds = {asked: said["scores"]} | (said["kinds"] if asked == "yes_no" else {})
            scores[name] |= {
                kind: {metric: score["value"] for metric, score in metrics.items()} for kind, metrics in kinds.items()
            }
    return scores


def prefer(model: Path, dataset: Path, output: Path, seed: int, *options: str) -> None:
    """Stage 3 with the demo's recipe; an existing model is kept."""
    if (output / "config.json").exists():
        return
    command = [
        *(sys.executable, "-m", "unicorn_hf", "train", "prefer", "--accelerate-config", "accelerate/cpu.yaml"),
        *("--config", "demo/prefer.yaml", "--model_name_or_path", str(model), "--dataset", str(dataset)),
        *("--dataset_config", "unicorn-preference", "--output_dir", str(output), "--seed", str(seed)),
        *("--disable_tqdm", "true", *options),
    ]
    subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})


def ask_what_is_there(demo_output: Path, seed: int) -> Dataset:
    """Four questions about every test image: two about things in it, and one about an absent thing of each kind."""
    pictures = read_dataset(demo_output / "4-embeddings" / "test")
    rng, rows = random.Random(f"what is there {seed}"), []
    for picture, scene in enumerate(pictures["seed"]):
        there = [(thing.color, thing.shape) for thing in parse_seed(scene).things]
        absent = [(color, shape) for color in COLORS for shape in SHAPES if (color, shape) not in there]
        akin = [(color, shape) for color, shape in absent if any(color == c or shape == s for c, s in there)]
        for kind, others in (("random", absent), ("akin", akin)):
            for things, answer in ((there, "yes"), (others, "no")):
                color, shape = rng.choice(things)
                question = f"Is there {'an' if color[0] == 'o' else 'a'} {color} {shape}?"
                rows.append({"picture": picture, "kind": kind, "question": question, "answer": answer})
    questions = Dataset.from_list(rows)
    vectors = pictures.select(questions["picture"]).select_columns(["image_embeds"])
    return concatenate_datasets([questions, vectors], axis=1)


def print_table(runs: list[dict]) -> None:
    print(f"\nIs there ...? about pictures that no model has seen; seeds: {len(runs)}; mean ± standard deviation")
    print("| trained on | " + " | ".join(COLUMNS) + " |")
    print("| --- |" + " --- |" * len(COLUMNS))
    for name, title in MODELS.items():
        cells = [cell([run[name][asked][metric] for run in runs]) for asked, metric in COLUMNS.values()]
        print(f"| {title} | " + " | ".join(cells) + " |")


def cell(values: list[float]) -> str:
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
