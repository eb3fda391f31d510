"""Which conversations are kept, and why the others are not."""

import re

from unicorn_hf.synthesis.answers import BadAnswer

_LEAK_WORDS = 8  # as many words of the caption in a row give it away
_NAMES_CAPTION = re.compile(
    r"\b(?:captions?|descriptions?|described|the text|the passage|is mentioned)\b", re.IGNORECASE
)
_UNANSWERABLE = re.compile(
    r"\b(?:not (?:mentioned|specified|stated|described|given|clear|possible|visible)"
    r"|cannot be (?:determined|known|seen)|can['’]t (?:tell|say|be determined)"
    r"|does(?: not|n['’]t) (?:say|mention|specify)|impossible to (?:say|tell|know)"
    r"|unknown|unspecified|no information|not enough information)\b",
    re.IGNORECASE,
)


def check_turns(turns: list[tuple[str, str]], caption: str) -> None:
    """Raise `BadAnswer` unless every (question, answer) is sound.

    Questions differ, hold no answer and give nothing of the caption away; answers say something, and speak of the
    picture.
    """
    questions = [words(question) for question, _ in turns]
    if len(set(map(tuple, questions))) < len(questions):
        raise BadAnswer("repeated_question", "a question is asked twice")
    for question, answer in turns:
        if not words(question) or not words(answer):
            raise BadAnswer("empty_turn", "a question or an answer holds no word")
        if leaks(question, caption):
            raise BadAnswer("caption_leak", f"the question {question[:80]!r} quotes the description")
        if _NAMES_CAPTION.search(question) or _NAMES_CAPTION.search(answer):
            raise BadAnswer("names_caption", "a turn speaks of a description; speak of the picture")
        if _UNANSWERABLE.search(answer):
            raise BadAnswer("unanswerable", f"the description does not answer {question[:80]!r}; ask what it answers")
        if copied(answer, question):
            raise BadAnswer("answer_in_question", f"the question {question[:80]!r} holds its answer")


def check_options(question: str, options: list[str], answer: str) -> int:
    """The index of the right option.

    Raises:
        BadAnswer: two options are alike, or not exactly one is the answer.
    """
    folded = [words(option) for option in options]
    if not all(folded):
        raise BadAnswer("empty_option", f"an option of {question[:80]!r} holds no word")
    if len(set(map(tuple, folded))) < len(folded):
        raise BadAnswer("repeated_option", f"two options of {question[:80]!r} are alike")
    right = [index for index, option in enumerate(folded) if option == words(answer)]
    if len(right) != 1:
        raise BadAnswer("no_right_option", f"the answer to {question[:80]!r} is not one of its options, word for word")
    return right[0]


def leaks(question: str, caption: str) -> bool:
    """Whether a question holds the whole caption, or a run of eight of its words."""
    asked, known = words(question), words(caption)
    length = min(_LEAK_WORDS, len(known))
    return any(_holds(asked, known[start : start + length]) for start in range(len(known) - length + 1))


def copied(answer: str, question: str) -> bool:
    """Whether a question that offers no choice holds its whole answer."""
    asked = words(question)
    return "or" not in asked and _holds(asked, words(answer))


def agree(answer: str, second: str) -> bool:
    """Whether two answers to one question say the same: one holds most of the content words of the other."""
    first, other = set(words(answer)) - _FILLERS, set(words(second)) - _FILLERS
    if not first or not other:
        return words(answer) == words(second)
    return len(first & other) >= 0.6 * min(len(first), len(other))


_FILLERS = frozenset(("a", "an", "the", "is", "are", "it", "there", "in", "on", "at", "of", "to", "and"))


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _holds(sequence: list[str], part: list[str]) -> bool:
    return any(sequence[start : start + len(part)] == part for start in range(len(sequence) - len(part) + 1))
