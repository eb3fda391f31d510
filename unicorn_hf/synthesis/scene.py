"""The scenes that the grammar describes: one or two colored shapes on a plain background.

A scene is the world's ground truth. Its sparse seed ("red circle, small, top left, white background") is what a user
would bring; `GrammarWriter` expands it, and `sandbox.world` draws it.
"""

import itertools
import re
from dataclasses import dataclass

from unicorn_hf.errors import InputError

COLORS = ("red", "green", "blue", "yellow", "purple", "orange")
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = ("small", "large")
BACKGROUNDS = ("white", "gray", "black", "pink")
POSITIONS = ("top left", "top right", "bottom left", "bottom right", "center")
RELATIONS = ("left of", "right of", "above", "below")
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@dataclass(frozen=True)
class Thing:
    """One object; `size` is None if a caption does not mention it."""

    color: str
    shape: str
    size: str | None = None


@dataclass(frozen=True)
class Scene:
    """One object at a `position`, or two objects, the first `relation` ("left of", ...) the second.

    What a caption leaves out is None.
    """

    things: tuple[Thing, ...]
    background: str | None = None
    position: str | None = None
    relation: str | None = None

    def seed(self) -> str:
        """The sparse text that `parse_seed` reads back."""
        things = "; ".join(f"{thing.color} {thing.shape}, {thing.size}" for thing in self.things)
        return f"{things}, {self.position or self.relation}, {self.background} background"


def parse_seed(seed: str) -> Scene:
    """The scene of a sparse seed such as "red circle, small, top left" (size, place and background may be missing).

    Raises:
        InputError: the seed names no colored shape, or more than two.
    """
    text = seed.lower()
    found = re.findall(rf"({'|'.join(COLORS)}) ({'|'.join(SHAPES)})(?:, ({'|'.join(SIZES)}))?", text)
    if not 1 <= len(found) <= 2:
        raise InputError(
            f"seed {seed!r}: the grammar writer expects one or two objects such as 'red circle, small, top left, "
            f"white background' (colors: {', '.join(COLORS)}; shapes: {', '.join(SHAPES)})"
        )
    things = tuple(Thing(color, shape, size or None) for color, shape, size in found)
    background = re.search(rf"({'|'.join(BACKGROUNDS)}) background", text)
    place = POSITIONS if len(things) == 1 else RELATIONS
    placed = re.search("|".join(place), text)
    return Scene(
        things,
        background=background[1] if background else None,
        position=placed[0] if placed and len(things) == 1 else None,
        relation=placed[0] if placed and len(things) == 2 else None,
    )


def all_scenes() -> tuple[list[Scene], list[Scene]]:
    """Every complete scene with one object (960), and with two that differ in color or shape (17,664)."""
    pairs = list(itertools.combinations(itertools.product(COLORS, SHAPES), 2))
    one = [
        Scene((Thing(color, shape, size),), background=background, position=position)
        for color, shape, size, background, position in itertools.product(COLORS, SHAPES, SIZES, BACKGROUNDS, POSITIONS)
    ]
    two = [
        Scene((Thing(*first, size), Thing(*second, other_size)), background=background, relation=relation)
        for (first, second), size, other_size, background, relation in itertools.product(
            pairs, SIZES, SIZES, BACKGROUNDS, RELATIONS
        )
    ]
    return one, two
