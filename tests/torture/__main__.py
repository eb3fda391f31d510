"""Hostile and broken input on every command, and a power cut at every write: `make torture`.

Every attempt is one command line in a process of its own, with a limit of time and memory. Allowed are only status 0
for what can be used, 3 for what can be used in part, and 2 with one sentence. Prints a table of what was tried; ends
with 1 where anything else came out.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parent.parent))

from attempt import Attempt, attempt
from broken_files import KINDS
from material import make_material
from power_cuts import STEPS, cut_power


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=15, help="of broken input and power cuts together")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    # One thread: a fork of a process with a pool of them waits for threads that it does not have.
    os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1", OMP_NUM_THREADS="1")
    with tempfile.TemporaryDirectory() as folder:
        material = make_material(Path(folder) / "material")
        started = time.monotonic()
        cuts = Counter()
        wrong: list[str] = []
        for name, step in STEPS.items():
            limit = started + options.minutes * 60 * 0.4 * (list(STEPS).index(name) + 1) / len(STEPS)
            cuts[name], faults = cut_power(step, material, Path(folder) / "cuts" / name, until=limit)
            wrong += [f"power cut in {name}: {fault}" for fault in faults]
        tried, bad = Counter(), Counter()
        round_number = 0
        while not tried or time.monotonic() < started + options.minutes * 60:
            for kind, make in KINDS.items():
                rng = random.Random(f"{options.seed} {kind} {round_number}")
                place = Path(folder) / f"{kind}-{round_number}".replace(" ", "-")
                place.mkdir()
                command, usable = make(rng, material, place)
                outcome = attempt(command, place)
                tried[kind] += 1
                if fault := fault_of(outcome, usable):
                    bad[kind, fault] += 1
                    wrong.append(f"{kind}: {fault}: {' '.join(map(str, command))}\n    {outcome.tail()}")
                if time.monotonic() > started + options.minutes * 60:
                    break
            round_number += 1
    faults = ("traceback", "hang over 30 s", "accepted in silence", "status or sentence")
    print(f"{'kind':44} {'tried':>6} " + " ".join(f"{fault:>20}" for fault in faults))
    for kind in KINDS:
        print(f"{kind:44} {tried[kind]:6} " + " ".join(f"{bad[kind, fault]:20}" for fault in faults))
    for name, count in cuts.items():
        failed = sum(line.startswith(f"power cut in {name}:") for line in wrong)
        print(f"{'power cut: ' + name:44} {count:6} points, {count - failed} passed")
    for line in wrong:
        print(line)
    return 1 if wrong else 0


def fault_of(outcome: Attempt, usable: bool | None) -> str | None:
    """What is wrong with an outcome. `usable`: whether the input can be used; None where either may be right."""
    if outcome.timed_out:
        return "hang over 30 s"
    if "Traceback (most recent call last)" in outcome.output or outcome.status < 0:
        return "traceback"
    if outcome.status == 0 and usable is False:
        return "accepted in silence"
    if outcome.status == 2 and usable is True:
        return "status or sentence"
    if outcome.status not in (0, 2, 3):
        return "status or sentence"
    if outcome.status == 2 and not outcome.has_one_sentence():
        return "status or sentence"
    return None


if __name__ == "__main__":
    sys.exit(main())
