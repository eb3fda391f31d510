"""The toy world: scenes with known attributes, drawn with Pillow, and their split into sets.

A tenth of the two-object color-shape pairs is held out: only the test set shows them. No caption, conversation or other
picture does, not even in the training of the tiny CLIP.
"""

import random
import re
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from unicorn_hf.synthesis.scene import COLORS, INVERSE, SHAPES, Scene, all_scenes

IMAGE_SIZE = 64
_OVERSAMPLE = 4  # draw four times as large, then shrink, for smooth edges
_RGB = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (45, 80, 220),
    "yellow": (240, 215, 40),
    "purple": (140, 50, 170),
    "orange": (245, 140, 25),
    "white": (245, 245, 245),
    "gray": (128, 128, 128),
    "black": (15, 15, 15),
    "pink": (250, 185, 205),
}
_RADIUS = {"small": 8.0, "large": 13.0}
_CENTER = {
    "top left": (17, 17),
    "top right": (47, 17),
    "bottom left": (17, 47),
    "bottom right": (47, 47),
    "center": (32, 32),
}
# The centers of the first and second object for each relation.
_PAIR_CENTERS = {
    "left of": ((17, 32), (47, 32)),
    "right of": ((47, 32), (17, 32)),
    "above": ((32, 17), (32, 47)),
    "below": ((32, 47), (32, 17)),
}


def draw(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """A 64 x 64 RGB picture of a complete scene; place, size, color and pixels vary a little with `rng`."""
    size = IMAGE_SIZE * _OVERSAMPLE
    image = Image.new("RGB", (size, size), _shade(scene.background, rng))
    pen = ImageDraw.Draw(image)
    centers = [_CENTER[scene.position]] if scene.position else _PAIR_CENTERS[scene.relation]
    for thing, center in zip(scene.things, centers, strict=True):
        x, y = _OVERSAMPLE * (np.array(center) + rng.uniform(-2.5, 2.5, 2))
        radius = _OVERSAMPLE * _RADIUS[thing.size] * rng.uniform(0.9, 1.1)
        _draw_shape(pen, thing.shape, x, y, radius, _shade(thing.color, rng))
    pixels = np.asarray(image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX), dtype=np.float32)
    pixels += rng.normal(0, 5, pixels.shape).astype(np.float32)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def draw_all(scenes: list[Scene], seed: int) -> list[Image.Image]:
    """One picture per scene; picture i depends only on `seed`, i and its scene."""
    return [draw(scene, np.random.default_rng((seed, index))) for index, scene in enumerate(scenes)]


@dataclass(frozen=True)
class Split:
    """Three disjoint sets of scenes; only `test` holds the held-out pairs."""

    captions: list[Scene]
    pictures: list[Scene]
    test: list[Scene]


def split_scenes(seed: int, num_captions: int, num_pictures: int, num_test: int) -> Split:
    """Split the world's scenes into captions, unpaired pictures (for the statistics) and the test set.

    A quarter of each set shows one object, the rest two. There are few one-object scenes (960), so a set may use its
    own more than once.
    """
    rng = random.Random(f"scenes {seed}")
    one, two = all_scenes()
    held_out = held_out_pairs()
    seen = [scene for scene in two if color_shape_pair(scene) not in held_out]
    unseen = [scene for scene in two if color_shape_pair(scene) in held_out]
    for scenes in (one, seen, unseen):
        rng.shuffle(scenes)
    cut = len(seen) * num_captions // (num_captions + num_pictures)
    return Split(
        captions=_draw_set(rng, one[:480], seen[:cut], num_captions),
        pictures=_draw_set(rng, one[480:720], seen[cut:], num_pictures),
        test=_draw_set(rng, one[720:], unseen, num_test),
    )


def held_out_pairs() -> frozenset:
    """The tenth of the 276 color-shape pairs that only the test set shows; the same in every run."""
    _, two = all_scenes()
    pairs = sorted({color_shape_pair(scene) for scene in two})
    return frozenset(random.Random("held out").sample(pairs, round(0.1 * len(pairs))))


def color_shape_pair(scene: Scene) -> tuple:
    return tuple(sorted((thing.color, thing.shape) for thing in scene.things))


def check_answer(scene: Scene, question: str, answer: str) -> bool:
    """Whether `answer` is right about `scene`. It reads the question's words and shares no code with the writer."""
    question, *options = question.removeprefix("<image>\n").split("\n")
    if options:
        value, letter = re.fullmatch(r"(.+) \(([A-D])\)", answer).groups()
        return f"({letter}) {value}" in options and check_answer(scene, question, _place(question, value))
    named = [
        thing
        for color, shape in re.findall(rf"the (?:({'|'.join(COLORS)}) )?({'|'.join(SHAPES)}|object)\b", question)
        for thing in scene.things
        if color in ("", thing.color) and shape in ("object", thing.shape)
    ]
    if question.startswith("How many"):
        return answer == ("one", "two")[len(scene.things) - 1]
    if question.startswith("What color is the background"):
        return answer == scene.background
    if question.startswith("Are the two objects of the same size"):
        return (answer == "yes") == (len({thing.size for thing in scene.things}) == 1)
    if question.startswith("Which object is larger"):
        larger = max(scene.things, key=lambda thing: _RADIUS[thing.size])
        return answer == f"the {larger.color} {larger.shape}"
    if "seen from" in question:
        first, second = named
        return {first, second} == set(scene.things) and answer == (
            scene.relation if first is scene.things[0] else INVERSE[scene.relation]
        )
    if question.startswith("Where is"):
        return len(scene.things) == 1 and answer == f"at the {scene.position}"
    (thing,) = named
    return answer == {"What color": thing.color, "What shape": thing.shape, "What size ": thing.size}[question[:10]]


def _place(question: str, value: str) -> str:
    return f"at the {value}" if question.startswith("Where is") else value


def _draw_set(rng: random.Random, one: list[Scene], two: list[Scene], count: int) -> list[Scene]:
    num_one = count // 4
    scenes = [*_take(one, num_one), *_take(two, count - num_one)]
    rng.shuffle(scenes)
    return scenes


def _take(scenes: list[Scene], count: int) -> list[Scene]:
    """`count` scenes, none more than once as long as there are enough."""
    return (scenes * -(-count // len(scenes)))[:count]


def _shade(color: str, rng: np.random.Generator) -> tuple[int, int, int]:
    return tuple(int(value) for value in np.clip(_RGB[color] + rng.uniform(-12, 12, 3), 0, 255))


def _draw_shape(pen: ImageDraw.ImageDraw, shape: str, x: float, y: float, radius: float, fill: tuple) -> None:
    if shape == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    elif shape == "square":
        half = 0.88 * radius
        pen.rectangle((x - half, y - half, x + half, y + half), fill=fill)
    elif shape == "triangle":
        pen.polygon([(x, y - radius), (x - radius, y + 0.8 * radius), (x + radius, y + 0.8 * radius)], fill=fill)
    else:
        arm = 0.32 * radius
        pen.rectangle((x - radius, y - arm, x + radius, y + arm), fill=fill)
        pen.rectangle((x - arm, y - radius, x + arm, y + radius), fill=fill)
