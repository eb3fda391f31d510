"""The three tasks of stage 2, the faults of rejected answers, and how each caption gets one."""

import random
from collections.abc import Sequence

from unicorn_hf.errors import InputError
from unicorn_hf.synthesis.grammar import TASKS


def check_mix(mix: dict[str, float] | None, names: Sequence[str] = TASKS) -> dict[str, float]:
    """The shares of the tasks, or of other `names`, all equal by default.

    Raises:
        InputError: an unknown name, a negative share, or none above 0.
    """
    mix = mix or dict.fromkeys(names, 1.0)
    for name, share in mix.items():
        if name not in names or share < 0 or sum(mix.values()) <= 0:
            raise InputError(f"mix {name}={share}: expected shares of 0 or more for some of {', '.join(names)}")
    return mix


def draw_task(caption: str, mix: dict[str, float], seed: int) -> tuple[str, random.Random]:
    """The task of a caption, and the source of its further choices; both depend only on `seed` and the caption."""
    return _draw(f"instructions {seed} {caption}", mix)


def draw_fault(caption: str, mix: dict[str, float], seed: int) -> tuple[str, random.Random]:
    """The fault of a caption's rejected answer, one of `FAULTS`, and the source of further choices."""
    return _draw(f"preferences {seed} {caption}", mix)


def _draw(key: str, mix: dict[str, float]) -> tuple[str, random.Random]:
    rng = random.Random(key)
    (name,) = rng.choices(list(mix), weights=list(mix.values()))
    return name, rng
