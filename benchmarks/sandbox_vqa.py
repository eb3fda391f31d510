"""How much does text-only training reach, and how do runs differ? The demo with three seeds.

    python benchmarks/sandbox_vqa.py [--output DIR]

Each seed draws another world, other captions, other pictures and other weights; the tiny CLIP is the same, so nothing
is said about other encoders. A seed that is done is not done again.
"""

import argparse
from pathlib import Path

import numpy as np

from unicorn_hf.sandbox.demo import CONDITIONS, demo

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output" / "sandbox_vqa")
parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
arguments = parser.parse_args()

tables = [demo(arguments.output / f"seed-{seed}", seed=seed) for seed in arguments.seeds]

print(f"\nAccuracy over {len(tables)} seeds: mean ± standard deviation")
print("| question | " + " | ".join(CONDITIONS.values()) + " |")
print("| --- |" + " --- |" * len(CONDITIONS))
for kind in ["all", *sorted(set(tables[0]["blind"]) - {"all"})]:
    cells = []
    for name in CONDITIONS:
        values = np.array([table[name][kind] for table in tables])
        cells.append(f"{values.mean():.3f} ± {values.std(ddof=1):.3f}")
    print(f"| {kind} | " + " | ".join(cells) + " |")

print("\nReAlign less another condition, seed by seed (all questions)")
for other in CONDITIONS:
    if other != "realign":
        differences = np.array([table["realign"]["all"] - table[other]["all"] for table in tables])
        # Two-sided 95 % limit of Student's t with as many degrees of freedom as seeds but one.
        limit = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776}[len(tables) - 1]
        error = differences.std(ddof=1) / np.sqrt(len(tables))
        verdict = "separated" if abs(differences.mean()) > limit * error else "not separated by the noise of the seeds"
        listed = ", ".join(f"{value:+.3f}" for value in differences)
        print(f"- {CONDITIONS[other]}: {listed}; mean {differences.mean():+.3f}, {verdict}")
share = [table["realign"]["all"] / table["paired"]["all"] for table in tables]
print(f"- share of the upper bound: {', '.join(f'{value:.1%}' for value in share)}")
