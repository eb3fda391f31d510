"""Multiple choice, scored by the letter that the model writes and by likelihood, with the options in every rotation.

CircularEval (MMBench, Liu et al. 2023, arXiv 2307.06281): a question counts as right only if it is right in all
rotations of its options. A model that always says "A" then scores 0.
"""

import re
from string import ascii_uppercase

import numpy as np

from unicorn_hf.data.markup import without_marks
from unicorn_hf.data.sources import check_columns
from unicorn_hf.errors import InputError
from unicorn_hf.evaluation.questions import read_questions
from unicorn_hf.evaluation.scores import Metric, mean_of


class MultipleChoice:
    """`question`, `options` (a list of texts) and `answer`: a letter, an index from 0, or the option's text.

    Args:
        circular: ask with the options in every rotation, not only in their original order.
    """

    max_new_tokens = 32

    def __init__(self, dataset, source, circular: bool = True):
        self.bare_questions = read_questions(dataset, source)
        check_columns(dataset, "options", "answer", source=source)
        self.options, answers = dataset["options"][:], dataset["answer"][:]
        for row, options in enumerate(self.options):
            _check_options(options, row, source)
        # An option is text: the image stands where the question has it.
        self.options = [[without_marks(option) for option in options] for options in self.options]
        answers = [without_marks(answer) if isinstance(answer, str) else answer for answer in answers]
        self.questions = [with_options(*row) for row in zip(self.bare_questions, self.options, strict=True)]
        # If every answer is the text of an option, answers are texts, even if these look like letters.
        by_text = all(answer in options for answer, options in zip(answers, self.options, strict=True))
        self.right = [
            _right_option(answer, options, by_text, row, source)
            for row, (answer, options) in enumerate(zip(answers, self.options, strict=True))
        ]
        self.expected = [
            f"{options[right]} ({ascii_uppercase[right]})"
            for options, right in zip(self.options, self.right, strict=True)
        ]
        self.circular = circular

    def score(self, reader) -> tuple[list[str], dict[str, Metric]]:
        asked = [  # (row, rotation)
            (row, rotation)
            for row, options in enumerate(self.options)
            for rotation in range(len(options) if self.circular else 1)
        ]
        rows = [row for row, _ in asked]
        rotated = [self.options[row][rotation:] + self.options[row][:rotation] for row, rotation in asked]
        questions = [
            with_options(self.bare_questions[row], options) for row, options in zip(rows, rotated, strict=True)
        ]
        right = [(self.right[row] - rotation) % len(self.options[row]) for row, rotation in asked]

        answers = reader.answer(questions, rows)
        chosen = [chosen_option(answer, options) for answer, options in zip(answers, rotated, strict=True)]
        likeliest = [int(values.argmax()) for values in reader.log_likelihoods(questions, rows, rotated)]

        first = np.array([rotation == 0 for _, rotation in asked])
        metrics = {}
        for name, choices in (("letter", chosen), ("likelihood", likeliest)):
            correct = np.array([choice == index for choice, index in zip(choices, right, strict=True)])
            metrics[name] = mean_of(correct[first])
            if self.circular:
                metrics[f"{name}_circular"] = mean_of(np.logical_and.reduceat(correct, np.flatnonzero(first)))
        metrics["no_letter"] = mean_of([choice is None for choice, plain in zip(chosen, first, strict=True) if plain])
        return [answer for answer, plain in zip(answers, first, strict=True) if plain], metrics


def with_options(question: str, options: list[str]) -> str:
    """The question and its lettered options, in the format of stage 2's training data."""
    listed = (f"({letter}) {option}" for letter, option in zip(ascii_uppercase, options, strict=False))
    return "\n".join([question, *listed])


def chosen_option(answer: str, options: list[str]) -> int | None:
    """The option that an answer names, by its letter or word for word; None if it names none or several."""
    letters = ascii_uppercase[: len(options)]
    alone = re.fullmatch(rf"\(?([{letters}])\)?[.:]?", answer.strip(), re.IGNORECASE)
    if alone:
        return letters.index(alone[1].upper())
    for fold in (str, str.lower):  # "BB" is one option and "Bb" another
        texts = [fold(option.strip()) for option in options]
        said = fold(answer.strip().rstrip("."))
        if texts.count(said) == 1:
            return texts.index(said)
    # Matches "(B)", "B. red", "B) red" and "the answer is B", but not the article in "A red circle".
    patterns = (rf"\(([{letters}])\)", rf"^([{letters}])[.:)]", rf"\b(?:[Aa]nswer|[Oo]ption)(?: is)?:? ([{letters}])\b")
    for pattern in patterns:
        found = set(re.findall(pattern, answer.strip()))
        if len(found) == 1:
            index = letters.index(found.pop())
            beside = re.sub(pattern, "", answer.strip()).strip(" .,:").lower()
            return None if beside in texts and texts[index] != beside else index
    named = [index for index, text in enumerate(texts) if re.search(rf"(?<!\w){re.escape(text)}(?!\w)", said)]
    return named[0] if len(named) == 1 else None


def _check_options(options, row: int, source) -> None:
    if (
        not isinstance(options, list)
        or not 2 <= len(options) <= len(ascii_uppercase)
        or not all(isinstance(option, str) and without_marks(option).strip() for option in options)
    ):
        raise InputError(f"{source}: row {row}: the options are {options!r}; expected a list of 2 to 26 texts")
    if len({without_marks(option).strip() for option in options}) < len(options):
        raise InputError(
            f"{source}: row {row}: two of the options {options!r} are alike; expected others, or leave the row out"
        )


def _right_option(answer, options: list[str], by_text: bool, row: int, source) -> int:
    index = -1
    if isinstance(answer, int) and not isinstance(answer, bool):
        index = answer
    elif isinstance(answer, str) and not by_text and len(letter := answer.strip(" ().").upper()) == 1:
        index = ascii_uppercase.find(letter)
    elif answer in options:
        index = options.index(answer)
    if not 0 <= index < len(options):
        raise InputError(
            f"{source}: row {row}: the answer {answer!r} is none of the options {options!r}; expected a letter, an "
            "index from 0, or the text of one"
        )
    return index
