"""Hostile and broken input on every command, and a power cut at every write: `make torture`.

Every attempt is one command line in a process of its own, with a limit of time and memory. Allowed are only status 0
for what can be used, 3 for what can be used in part, and 2 with one sentence. Prints a table of what was tried; ends
with 1 where anything else came out.
"""

import argparse
import itertools
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parent.parent))
# Before the libraries read it. One thread: a fork of a process with a pool of them waits for threads that it lacks.
HF_HOME = tempfile.TemporaryDirectory()
os.environ.update(HF_HOME=HF_HOME.name, HF_HUB_OFFLINE="1", TQDM_DISABLE="1", OMP_NUM_THREADS="1")

from attempt import Attempt, attempt  # noqa: E402
from broken_files import KINDS  # noqa: E402
from material import make_material  # noqa: E402
from power_cuts import STEPS, cut_power  # noqa: E402

FULL, SAMPLE = "full", "sample"
MOST_POINTS = {FULL: 18, SAMPLE: 2}  # of a step's calls at which it is ended
ROUNDS_OF_SAMPLE = 1
SECONDS = {FULL: 30, SAMPLE: 600}  # of an attempt: a sample says nothing about the speed of a machine that is busy


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=15, help="of power cuts and then broken input")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sample", action="store_true", help="the same few attempts each time, however long they take")
    options = parser.parse_args()
    size = SAMPLE if options.sample else FULL
    with tempfile.TemporaryDirectory() as folder:
        material = make_material(Path(folder) / "material")
        started = time.monotonic()
        cuts = Counter()
        wrong: list[str] = []
        for name, step in STEPS.items():
            cuts[name], faults = cut_power(step, material, Path(folder) / "cuts" / name, most=MOST_POINTS[size])
            wrong += [f"power cut in {name}: {fault}" for fault in faults]
        tried, bad = Counter(), Counter()
        for kind, number in attempts_to_make(size, started + options.minutes * 60):
            rng = random.Random(f"{options.seed} {kind} {number}")
            place = Path(folder) / f"{kind}-{number}".replace(" ", "-")
            place.mkdir()
            command, usable = KINDS[kind](rng, material, place)
            outcome = attempt(command, place, SECONDS[size])
            tried[kind] += 1
            if fault := fault_of(outcome, usable):
                bad[kind, fault] += 1
                wrong.append(f"{kind}: {fault}: {' '.join(map(str, command))}\n    {outcome.tail()}")
    faults = ("traceback", "hang over 30 s", "accepted in silence", "status or sentence")
    print(f"{'kind':44} {'tried':>6} " + " ".join(f"{fault:>20}" for fault in faults))
    for kind in KINDS:
        print(f"{kind:44} {tried[kind]:6} " + " ".join(f"{bad[kind, fault]:20}" for fault in faults))
    for name, count in cuts.items():
        failed = sum(line.startswith(f"power cut in {name}:") for line in wrong)
        print(f"{'power cut: ' + name:44} {count:6} points, {count - failed} passed")
    print(
        f"{cuts.total()} crash points in {(time.monotonic() - started) / 60:.1f} minutes with {tried.total()} attempts"
    )
    for line in wrong:
        print(line)
    return 1 if wrong else 0


def attempts_to_make(size: str, until: float) -> Iterator[tuple[str, int]]:
    """Kinds of broken input and the attempts' numbers: all kinds once, then again and again while there is time."""
    for number in itertools.count():
        for kind in KINDS:
            if number >= (ROUNDS_OF_SAMPLE if size == SAMPLE else 1) and (size == SAMPLE or time.monotonic() >= until):
                return
            yield kind, number


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
