"""The accuracy of text-only training by transfer and by stage, and its variation between seeds.

    python benchmarks/sandbox_vqa.py [--output DIR] [--seeds 0 1 2] [--transfers covariance]

Runs the demo with three seeds, and adds a further transfer and every model with only one of the stages. Each seed has
another world, other captions, other images and other weights; the tiny CLIP is the same, so the results say nothing
about other encoders. Finished work is kept: a stopped run resumes, and seeds or transfers can be added.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from unicorn_hf import evaluate, publish
from unicorn_hf.data.staging import new_folder, write_json
from unicorn_hf.sandbox.demo import (
    CONDITIONS,
    FULL,
    compare_with_bound,
    demo,
    finetuning,
    fit_transfers,
    pretraining,
    questions_with_vectors,
)
from unicorn_hf.sandbox.training_runs import train_all
from unicorn_hf.transfer.modality_transfer import METHODS

STAGES = {"stage_1": "stage 1 alone", "stage_2": "stage 2 alone", "both": "both stages"}
# Two-sided 95 % limit of Student's t, by degrees of freedom.
T_LIMIT = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output" / "sandbox_vqa")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--transfers", nargs="*", default=["covariance"], choices=sorted(METHODS.keys() - CONDITIONS))
    arguments = parser.parse_args()
    tables, runs = [], []
    for seed in arguments.seeds:
        folder = arguments.output / f"seed-{seed}"
        tables.append(demo(folder, seed=seed))
        runs.append(run_stages(folder, arguments.transfers, seed))
    write_json(dict(zip(arguments.seeds, runs, strict=True)), arguments.output / "stages.json")
    print_stages(runs)
    print_kinds(tables)
    if len(runs) > 1:
        print_differences(runs)


def run_stages(demo_output: Path, transfers: list[str], seed: int) -> dict[str, dict[str, dict]]:
    """Train the models that the demo does not; returns method -> stage -> score and blind score, of one seed."""
    folder = demo_output / "stages"
    vectors = [name for name in CONDITIONS if name != "blind"]
    datasets = {name: demo_output / "6-datasets" / name for name in vectors}
    fitted = {name: demo_output / "5-transfers" / name for name in vectors}
    models = {name: demo_output / "8-models" / name for name in vectors}
    for name in transfers:
        made, datasets[name], models[name] = (folder / kind / name for kind in ("transfers", "datasets", "models"))
        fitted[name] = made / name
        if not made.exists():
            with new_folder(made) as partial:
                fit_transfers(partial, demo_output, [name])
        if not datasets[name].exists():
            publish(made / "moved" / name, demo_output / "3-instructions" / "instructions", datasets[name])

    language_model = demo_output / "7-language-model" / "language-model"
    untrained = {name: folder / "untrained" / name for name in datasets}
    first = [[pretraining(language_model, datasets[name], untrained[name])] for name in datasets]
    # The warm-up's first step has a learning rate of zero, so it leaves the projector at its initial values.
    train_all(first, 1, seed)
    chains = [
        [
            pretraining(language_model, datasets[name], models[name]),
            finetuning(models[name], datasets[name], models[name]),
        ]
        for name in transfers
    ]
    chains += [[finetuning(untrained[name], datasets[name], untrained[name])] for name in datasets]
    train_all(chains, FULL.max_steps, seed)

    data = questions_with_vectors(demo_output)

    def score(name: str, stage: str, model: Path, **options) -> dict:
        output = folder / "answers" / name / stage
        if not output.exists():
            evaluate(model, data, output, batch_size=256, description=f"{name}, {STAGES[stage]}", **options)
        return json.loads((output / "evaluation.json").read_text())["scores"]["accuracy"]

    # Without vectors there is no projector to train: stage 1 does not change the language model, only stage 2 does.
    blind = score("blind", "both", demo_output / "8-models" / "blind" / "finetune", blind=True)
    scores = {
        "blind": {
            "stage_1": score("blind", "stage_1", models["none"] / "pretrain", blind=True),
            "stage_2": blind,
            "both": blind,
        }
    }
    for name in sorted(datasets, key="paired".__eq__):  # the upper bound last
        transfer = fitted[name] if fitted[name].exists() else None
        stages = {
            "stage_1": models[name] / "pretrain",
            "stage_2": untrained[name] / "finetune",
            "both": models[name] / "finetune",
        }
        scores[name] = {stage: score(name, stage, model, transfer=transfer) for stage, model in stages.items()}
    return scores


def print_stages(runs: list[dict]) -> None:
    print(f"\nAnswers right about pictures that no model has seen; seeds: {len(runs)}; mean ± standard deviation")
    print("| trained on | " + " | ".join(STAGES.values()) + " | both, before the average picture |")
    print("| --- |" + " --- |" * (len(STAGES) + 1))
    for name in runs[0]:
        cells = [cell([run[name][stage]["value"] for run in runs]) for stage in STAGES]
        unseeing = [run[name]["both"]["blind"] for run in runs]
        cells.append("" if None in unseeing else cell(unseeing))
        print(f"| {CONDITIONS.get(name, name)} | " + " | ".join(cells) + " |")


def print_kinds(tables: list[dict]) -> None:
    print("\nBoth stages, by kind of question")
    print("| question | " + " | ".join(CONDITIONS.values()) + " |")
    print("| --- |" + " --- |" * len(CONDITIONS))
    for kind in ["all", *sorted(set(tables[0]["blind"]) - {"all"})]:
        print(f"| {kind} | " + " | ".join(cell([table[name][kind] for table in tables]) for name in CONDITIONS) + " |")


def print_differences(runs: list[dict]) -> None:
    """Print which differences are significant over the seeds; both sides have the same world and questions."""

    def value(run: dict, name: str, stage: str) -> float:
        return run[name][stage]["value"]

    print("\nDifferences, seed by seed")
    for other in runs[0]:
        if other != "realign":
            values = [value(run, "realign", "both") - value(run, other, "both") for run in runs]
            print(f"- ReAlign less {CONDITIONS.get(other, other)}: {verdict(values)}")
    for name in runs[0]:
        if name != "blind":
            values = [value(run, name, "both") - value(run, name, "stage_2") for run in runs]
            print(f"- {CONDITIONS.get(name, name)}, both stages less stage 2 alone: {verdict(values)}")
    for run in runs:
        print(f"- {compare_with_bound({name: value(run, name, 'both') for name in run})}")


def cell(values: list[float]) -> str:
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


def verdict(values: list[float]) -> str:
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    separated = abs(np.mean(values)) > T_LIMIT[len(values) - 1] * error
    listed = ", ".join(f"{value:+.3f}" for value in values)
    return f"{listed}; mean {np.mean(values):+.3f}, {'' if separated else 'not '}separated by the seeds"


if __name__ == "__main__":
    main()
