"""The three tasks of stage 2, and which caption gets which."""

import random

from unicorn_hf.errors import InputError
from unicorn_hf.synthesis.grammar import TASKS


def check_mix(mix: dict[str, float] | None) -> dict[str, float]:
    """The shares of the tasks, all alike by default.

    Raises:
        InputError: an unknown task, a negative share, or none above 0.
    """
    mix = mix or dict.fromkeys(TASKS, 1.0)
    for task, share in mix.items():
        if task not in TASKS or share < 0 or sum(mix.values()) <= 0:
            raise InputError(f"mix {task}={share}: expected shares of 0 or more for tasks among {', '.join(TASKS)}")
    return mix


def draw_task(caption: str, mix: dict[str, float], seed: int) -> tuple[str, random.Random]:
    """The task of a caption, and the source of its further choices: they depend on `seed` and the caption only."""
    rng = random.Random(f"instructions {seed} {caption}")
    (task,) = rng.choices(list(mix), weights=list(mix.values()))
    return task, rng
