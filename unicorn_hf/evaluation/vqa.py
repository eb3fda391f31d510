"""Open questions, scored by the accuracy of the VQA evaluation (Antol et al. 2015, arXiv 1505.00468)."""

import re

from unicorn_hf.data.sources import check_columns
from unicorn_hf.errors import InputError
from unicorn_hf.evaluation.questions import read_questions
from unicorn_hf.evaluation.scores import Metric, mean_of

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBERS = {"none": "0"} | {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
}
# Contractions with all apostrophes; answers may leave out any of them.
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's i'd've i'm i've isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't
    must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd
    somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've
    something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't
    we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's
    who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll
    you're you've
"""
_APOSTROPHES = {word.replace("'", ""): word for word in _CONTRACTIONS.split()}
_FEWEST_ANNOTATORS = 4  # with fewer, no answer could reach an accuracy of 1


class Vqa:
    """The task `vqa`: columns `question`, and `answer` (a string, or a list from annotators) or VQA v2's `answers`."""

    max_new_tokens = 32

    def __init__(self, dataset, source):
        self.questions = read_questions(dataset, source)
        column = "answers" if "answers" in dataset.column_names else "answer"
        check_columns(dataset, column, source=source)
        self.references = [_references(value, row, source) for row, value in enumerate(dataset[column][:])]
        self.expected = [" / ".join(dict.fromkeys(references)) for references in self.references]

    def score(self, reader) -> tuple[list[str], dict[str, Metric]]:
        answers = reader.answer(self.questions, range(len(self.questions)))
        values = [vqa_accuracy(answer, given) for answer, given in zip(answers, self.references, strict=True)]
        return answers, {"accuracy": mean_of(values)}


def vqa_accuracy(answer: str, references: list[str]) -> float:
    """The VQA accuracy of an answer, 0 to 1.

    With one reference: whether both are equal after `normalize`. With several annotators: min(1, matches / 3), averaged
    over leaving out each annotator in turn.
    """
    said = normalize(answer)
    matches, total = sum(normalize(reference) == said for reference in references), len(references)
    if total == 1:
        return float(matches)
    if_one_of_them_is_out, if_another_is_out = min(1, (matches - 1) / 3), min(1, matches / 3)
    return (matches * if_one_of_them_is_out + (total - matches) * if_another_is_out) / total


def normalize(answer: str) -> str:
    """Normalize an answer as the VQA evaluation does.

    Lower case; number words become digits; articles are dropped; contractions get their apostrophes. Punctuation other
    than apostrophe and colon becomes a space, or nothing beside a space or if a comma stands between digits. Only
    decimal points are kept.
    """
    answer = answer.strip().translate({ord("’"): "'", ord("\n"): " ", ord("\t"): " "})
    number_with_comma, text = re.search(r"\d,\d", answer), answer
    for mark in _PUNCTUATION:
        closes_up = number_with_comma or f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if closes_up else " ")
    words = re.sub(r"\.(?!\d)", "", text).lower().split()
    words = [_NUMBERS.get(word, word) for word in words if word not in ("a", "an", "the")]
    return " ".join(_APOSTROPHES.get(word.replace("'", ""), word) for word in words)


def _references(value, row: int, source) -> list[str]:
    given = value if isinstance(value, list) else [value]
    given = [each.get("answer") if isinstance(each, dict) else each for each in given]
    if not all(isinstance(each, str) for each in given) or len(given) in range(2, _FEWEST_ANNOTATORS) or not given:
        raise InputError(
            f"{source}: row {row}: the answer is {value!r}; expected a string, or a list from {_FEWEST_ANNOTATORS} or "
            "more annotators"
        )
    return given
