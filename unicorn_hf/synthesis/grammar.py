"""`GrammarWriter`: a writer that needs no model. It only describes scenes (`scene.py`).

It does the jobs of an LLM in Unicorn's stages 1 and 2 (arXiv 2503.22655, section 3) for the toy world: it
expands a sparse seed into diverse captions, and it turns a caption, which it reads as text, into a conversation. It
also turns one into a question with a right and a wrong answer.
"""

import random
import re

from unicorn_hf.errors import InputError
from unicorn_hf.synthesis.pairs import IMAGE_PLACEHOLDER, make_pair
from unicorn_hf.synthesis.scene import (
    BACKGROUNDS,
    COLORS,
    INVERSE,
    POSITIONS,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    parse_seed,
)

TASKS = ("multiple_choice", "question_answering", "complex_reasoning")
# The possible faults of the rejected answer of a preference pair.
FAULTS = ("object", "color", "count", "relation")

_POSITION_PHRASES = {
    **{place: (f"at the {place}", f"in the {place} corner") for place in POSITIONS if place != "center"},
    "center": ("in the center", "in the middle"),
}
_RELATION_PHRASES = {
    "left of": ("to the left of", "left of"),
    "right of": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
_SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
_LETTERS = "ABCD"


class GrammarWriter:
    """Writes captions, conversations and preference pairs about the toy world's scenes."""

    name = "grammar"

    def captions(self, seed: str, count: int, rng: random.Random) -> list[str]:
        """`count` different captions of one seed: short, long and reordered ones in turn.

        Raises:
            InputError: the grammar cannot read the seed (see `parse_seed`).
        """
        scene = parse_seed(seed)
        styles = (_long_caption, _short_caption, _reordered_caption)
        captions = []
        # A sparse seed has few different captions, so the search for new ones is limited.
        for attempt in range(20 * count):
            caption = styles[attempt % len(styles)](scene, rng)
            if caption not in captions:
                captions.append(caption)
            if len(captions) == count:
                break
        return captions

    def conversation(self, caption: str, task: str, rng: random.Random) -> list[dict[str, str]]:
        """A conversation of one of `TASKS` that the caption alone answers, as chat messages.

        Raises:
            InputError: the grammar cannot read the caption.
        """
        questions = scene_questions(parse_caption(caption), task, rng)
        # Options make a turn twice as long, so fewer turns keep conversations of all tasks about equally long.
        turns = min(len(questions), 2 if task == "multiple_choice" else rng.randint(2, 4))
        messages = []
        for index, (_, question, answer) in enumerate(rng.sample(questions, turns)):
            placeholder = IMAGE_PLACEHOLDER if index == 0 else ""
            messages += [
                {"role": "user", "content": placeholder + question},
                {"role": "assistant", "content": answer},
            ]
        return messages

    def preference(self, caption: str, fault: str, rng: random.Random) -> dict[str, list[dict[str, str]]]:
        """A question with a right and a wrong answer, in the format of `make_pair`.

        Args:
            fault: the error of the wrong answer, one of `FAULTS`; if the caption says nothing of that kind, it is
                "object".

        Raises:
            InputError: the grammar cannot read the caption.
        """
        scene = parse_caption(caption)
        pairs = _wrong_answers(scene, fault, rng)
        if not pairs or (fault == "object" and rng.random() < 0.5):
            return make_pair(*_object_question(scene, rng))
        return make_pair(*rng.choice(pairs))


def parse_caption(caption: str) -> Scene:
    """The scene of a caption of the grammar; parts that the caption does not mention are None.

    Raises:
        InputError: the caption names no colored shape, more than two, or two alike, which questions cannot distinguish.
    """
    text = caption.lower()
    size_of = {word: size for size, words in _SIZE_WORDS.items() for word in words}
    size, color, shape = ("|".join(words) for words in (size_of, COLORS, SHAPES))
    found = list(re.finditer(rf"(?:({size}) )?({color}) ({shape})(?: that is ({size}))?", text))
    if not 1 <= len(found) <= 2:
        raise InputError(
            f"caption {caption!r}: the grammar writer expects one or two colored shapes, found {len(found)}"
        )
    things = tuple(Thing(match[2], match[3], size_of.get(match[1] or match[4])) for match in found)
    if len({(thing.color, thing.shape) for thing in things}) < len(things):
        raise InputError(f"caption {caption!r}: the grammar writer expects two objects to differ in color or shape")
    match = re.search(rf"\b({'|'.join(BACKGROUNDS)})\b", text)
    background = match[1] if match else None
    if len(things) == 1:
        position = next((p for p, phrases in _POSITION_PHRASES.items() if any(x in text for x in phrases)), None)
        return Scene(things, background=background, position=position)
    # In "A left of B", A is on the left; in "left of A there is B", B is.
    before, between = text[: found[0].start()], text[found[0].end() : found[1].start()]
    relation = next((r for r in RELATIONS if any(x in between for x in _RELATION_PHRASES[r])), None)
    if relation is None:
        relation = next((INVERSE[r] for r in RELATIONS if any(x in before for x in _RELATION_PHRASES[r])), None)
    return Scene(things, background=background, relation=relation)


def scene_questions(scene: Scene, task: str, rng: random.Random) -> list[tuple[str, str, str]]:
    """Every question of one task that a scene answers, as (kind, question, answer).

    The kinds are color, shape, size, position, background (`question_answering`), the same with lettered options
    (`multiple_choice`), and count, comparison, relation (`complex_reasoning`).
    """
    if task == "complex_reasoning":
        return _reasoning_questions(scene, rng)
    questions = _attribute_questions(scene)
    if task == "question_answering":
        return [(kind, question, answer) for kind, question, answer, _ in questions]
    if task == "multiple_choice":
        return [(kind, *_with_options(question, answer, values, rng)) for kind, question, answer, values in questions]
    raise InputError(f"unknown task {task!r}; expected one of {', '.join(TASKS)}")


def _long_caption(scene: Scene, rng: random.Random) -> str:
    text = f"{_noun(scene.things[0], rng)}, {_where(scene, rng)}"
    if scene.background:
        text += rng.choice((f", on a {scene.background} background", f". The background is {scene.background}"))
    return f"{rng.choice(('A picture of', 'There is', 'We see'))} {text}."


def _short_caption(scene: Scene, rng: random.Random) -> str:
    return f"{_noun(scene.things[0], rng)} {_where(scene, rng)}"


def _reordered_caption(scene: Scene, rng: random.Random) -> str:
    if len(scene.things) == 1:
        where, what = _where(scene, rng), _noun(scene.things[0], rng)
        text = rng.choice((f"{where} there is {what}", f"{what} is {where}"))
    else:
        first, second = (_noun(thing, rng) for thing in scene.things)
        inverse = rng.choice(_RELATION_PHRASES[INVERSE[scene.relation]]) if scene.relation else "with"
        text = f"{inverse} {first} there is {second}"
    if scene.background:
        text = f"{rng.choice(('On a {} background', 'In a {} picture')).format(scene.background)}, {text}"
    return f"{text[0].upper()}{text[1:]}."


def _where(scene: Scene, rng: random.Random) -> str:
    if len(scene.things) == 1:
        return rng.choice(_POSITION_PHRASES[scene.position]) if scene.position else "somewhere"
    relation = rng.choice(_RELATION_PHRASES[scene.relation]) if scene.relation else "and"
    return f"{relation} {_noun(scene.things[1], rng)}"


def _noun(thing: Thing, rng: random.Random) -> str:
    words = f"{thing.color} {thing.shape}"
    if thing.size:
        size = rng.choice(_SIZE_WORDS[thing.size])
        words = f"{words} that is {size}" if rng.random() < 0.2 else f"{size} {words}"
    return f"{_article(words)} {words}"


def _article(words: str) -> str:
    return "an" if words[0] == "o" else "a"


def _attribute_questions(scene: Scene) -> list[tuple[str, str, str, tuple[str, ...]]]:
    """(kind, question, answer, possible answers).

    An object is named by its color or by its shape, never by both: a question that tells what another one asks for
    would let a model answer without the image.
    """
    questions: list[tuple[str, str, str, tuple[str, ...]]] = []
    for thing in scene.things:
        by_shape, by_color = _names(thing, scene)
        if by_shape:
            questions.append(("color", f"What color is {by_shape}?", thing.color, COLORS))
        if by_color:
            questions.append(("shape", f"What shape is {by_color}?", thing.shape, SHAPES))
        if thing.size:
            questions.append(("size", f"What size is {by_shape or by_color}?", thing.size, SIZES))
    if scene.position:
        questions.append(("position", "Where is the object?", f"at the {scene.position}", POSITIONS))
    if scene.background:
        questions.append(("background", "What color is the background?", scene.background, BACKGROUNDS))
    return questions


def _names(thing: Thing, scene: Scene) -> tuple[str | None, str | None]:
    """The object, named by its shape and by its color; None if that name fits both objects."""
    if len(scene.things) == 1:
        return "the object", "the object"
    (other,) = (other for other in scene.things if other is not thing)
    by_shape = f"the {thing.shape}" if thing.shape != other.shape else None
    by_color = f"the {thing.color} object" if thing.color != other.color else None
    return by_shape, by_color


def _with_options(question: str, answer: str, values: tuple[str, ...], rng: random.Random) -> tuple[str, str]:
    """A question with up to four lettered options, and the answer with its letter: "red (B)"."""
    value = answer.removeprefix("at the ")
    options = [value, *rng.sample([other for other in values if other != value], min(3, len(values) - 1))]
    rng.shuffle(options)
    listed = "\n".join(f"({letter}) {option}" for letter, option in zip(_LETTERS, options, strict=False))
    return f"{question}\n{listed}", f"{value} ({_LETTERS[options.index(value)]})"


def _reasoning_questions(scene: Scene, rng: random.Random) -> list[tuple[str, str, str]]:
    count = {1: "one", 2: "two"}[len(scene.things)]
    questions = [("count", "How many objects are there?", count)]
    if len(scene.things) == 1:
        return questions
    first, second = rng.sample(scene.things, 2)
    names = [_names(thing, scene) for thing in (first, second)]
    one, other = (by_shape or by_color for by_shape, by_color in names)
    if first.size and second.size:
        questions.append(
            ("comparison", "Are the two objects of the same size?", "yes" if first.size == second.size else "no")
        )
        if first.size != second.size:
            larger = first if first.size == "large" else second
            questions.append(("comparison", "Which object is larger?", f"the {larger.color} {larger.shape}"))
    if scene.relation:
        relation = scene.relation if first is scene.things[0] else INVERSE[scene.relation]
        questions.append(("relation", f"Where is {one}, seen from {other}?", relation))
    return questions


# Fault -> the kinds of questions that can show it.
_KINDS = {
    "object": ("shape", "size"),
    "color": ("color", "background"),
    "count": ("count",),
    "relation": ("relation", "position", "comparison"),
}


def _wrong_answers(scene: Scene, fault: str, rng: random.Random) -> list[tuple[str, str, str]]:
    """The questions that can show a fault, as (question, answer, wrong answer).

    Most of those about attributes have lettered options: a model that rarely sees them forgets the letters.
    """
    pairs = []
    for kind, question, answer, values in _attribute_questions(scene):
        if kind in _KINDS[fault]:
            value = answer.removeprefix("at the ")
            wrong = rng.choice([other for other in values if other != value])
            pairs.append((question, answer, answer.replace(value, wrong)))
            question, answer = _with_options(question, answer, values, rng)
            options = [f"{option[4:]} {option[:3]}" for option in question.split("\n")[1:]]
            pairs += 2 * [(question, answer, rng.choice([option for option in options if option != answer]))]
    objects = [f"the {thing.color} {thing.shape}" for thing in scene.things]
    answers = (("one", "two"), ("yes", "no"), RELATIONS, objects)
    for kind, question, answer in _reasoning_questions(scene, rng):
        if kind in _KINDS[fault]:
            (alike,) = (values for values in answers if answer in values)
            pairs.append((question, answer, rng.choice([value for value in alike if value != answer])))
    return pairs


def _object_question(scene: Scene, rng: random.Random) -> tuple[str, str, str]:
    """A question whether an object is there; yes in half of the cases. An absent one shares a color or shape."""
    thing, present = rng.choice(scene.things), {(thing.color, thing.shape) for thing in scene.things}
    if rng.random() < 0.5:
        color, shape, answers = thing.color, thing.shape, ("yes", "no")
    else:
        akin = [(color, thing.shape) for color in COLORS] + [(thing.color, shape) for shape in SHAPES]
        (color, shape), answers = rng.choice([other for other in akin if other not in present]), ("no", "yes")
    return (f"Is there {_article(color)} {color} {shape}?", *answers)
