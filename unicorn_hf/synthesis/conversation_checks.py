"""Which conversations and pairs are kept, and why the others are not."""

import itertools
import re

from unicorn_hf.synthesis.answers import BadAnswer

_LEAK_WORDS = 8  # a question with this many words of the caption in a row is rejected
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
    """Raise `BadAnswer` unless every (question, answer) is valid.

    Questions must differ, and must not contain their answer or quote the caption. Answers must not be empty. Both must
    be about the image, not about a description.
    """
    questions = [words(question) for question, _ in turns]
    if len(set(map(tuple, questions))) < len(questions):
        raise BadAnswer("repeated_question", "a question is asked twice")
    for question, answer in turns:
        if leaks(question, caption):
            raise BadAnswer("caption_leak", f"the question {question[:80]!r} quotes the description")
        _check_answer(question, answer)
        if thing := unnamed_thing(question, answer, caption):
            raise BadAnswer(
                "not_in_caption", f"the question {question[:80]!r} is about a {thing!r} that is not described"
            )


def check_pair(question: str, chosen: str, rejected: str, caption: str) -> None:
    """Raise `BadAnswer` unless a question and its right answer are valid, and the wrong answer says something else.

    A wrong answer of another length would teach a length, and an evasive one would only teach not to evade.
    """
    check_turns([(question, chosen)], caption)
    said, unsaid = words(chosen), words(rejected)
    if said == unsaid:
        raise BadAnswer("same_answer", f"both answers to {question[:80]!r} are {chosen[:80]!r}")
    polar = {*said[:1], *unsaid[:1]} & _YES_NO
    if len(polar) == 1:
        raise BadAnswer("same_answer", f"of the answers to {question[:80]!r}, one has to say yes and the other no")
    _check_answer(question, rejected)
    short, long = sorted((len(said), len(unsaid)))
    if long > 2 * short + 2:
        raise BadAnswer("unlike_lengths", f"the answers have {short} and {long} words; make them alike in length")


def bears_out(second: str, chosen: str, rejected: str) -> bool:
    """Whether a second answer agrees with the right answer and not with the wrong one."""
    other, right, wrong = words(second), words(chosen), words(rejected)
    if right[0] in _YES_NO:
        return other[:1] == right[:1]
    only_right, only_wrong = (set(a) - set(b) - _FILLERS for a, b in ((right, wrong), (wrong, right)))
    return agree(chosen, second) and not only_wrong & set(other) and (not only_right or bool(only_right & set(other)))


_YES_NO = frozenset(("yes", "no"))


def _check_answer(question: str, answer: str) -> None:
    if not words(question) or not words(answer):
        raise BadAnswer("empty_turn", "a question or an answer holds no word")
    if _NAMES_CAPTION.search(question) or _NAMES_CAPTION.search(answer):
        raise BadAnswer("names_caption", "a turn speaks of a description; speak of the picture")
    if _UNANSWERABLE.search(answer):
        raise BadAnswer("unanswerable", f"the description does not answer {question[:80]!r}; ask what it answers")
    if copied(answer, question):
        raise BadAnswer("answer_in_question", f"the question {question[:80]!r} holds its answer")


def unnamed_thing(question: str, answer: str, caption: str) -> str | None:
    """A thing that a question presupposes ("the fruit bowl") but the caption does not mention; else None.

    English only. The caption need not mention what every image has, or general words for the content of an image.
    """
    described = words(caption)
    for match in _TAKEN_FOR_GRANTED.finditer(question.lower()):
        named = list(itertools.takewhile(lambda word: word not in _ENDS_OF_PHRASES, words(match[1])))
        nothing = match[0].startswith("how many") and words(answer)[:1] in (["no"], ["none"], ["zero"], ["0"])
        if not named or nothing:
            continue
        in_caption = [any(_akin(word, other) for other in described) for word in named]
        general = [word in _GENERAL for word in named]
        # A word in front can make another thing of a described one: "the fruit bowl", if there is a bowl of soup.
        if not (in_caption[0] or general[0]) and (any(in_caption) or not any(general)):
            return " ".join(named[: in_caption.index(True) + 1] if any(in_caption) else named)
    return None


# Up to three words in a lookahead, because the next phrase may begin among them.
_TAKEN_FOR_GRANTED = re.compile(
    r"(?:\b(?:the|this|that|these|those|his|her|its|their)|how many)(?=((?: [\w'’-]+){1,3}))"
)
_ENDS_OF_PHRASES = frozenset(
    re.findall(
        r"\w+",
        """a about above against an and are around as at be been before behind being below beneath beside between by can
        could did do does during for from has have he his how her i if in into is it its like look might near of off on
        onto or over s she should so than that the their them there these they this those through to toward towards
        under was were what when where which while who whose why will with within would you""",
    )
)
# Things that every image has, and general words for things that a caption names precisely.
_GENERAL = frozenset(
    re.findall(
        r"\w+",
        """action activity age air amount angle animal area arrangement atmosphere background biggest bird body
        bottom boy building camera center centre child closest clothes clothing color colour composition
        condition container context corner day decoration depicted detail device difference direction dish
        distance drink edge element end entire environment event expression face feature figure first floor
        food foreground front furniture gender girl ground group hair hand head height image individual
        instrument item kind landscape largest last left length light lighting liquid location lower machine
        main man material meal men mood most nearest object occasion one only other outfit part pattern
        people person photo photograph picture place plant pose position purpose reason relationship right
        room same scene season second setting shade shape shown side size sky smallest spot structure style
        subject surface surrounding surroundings table temperature texture thing third time tone tool top
        tree two type upper vehicle view viewer viewpoint visible visual wall water way wearing weather
        whole woman women word world""",
    )
)


def _akin(word: str, other: str) -> bool:
    """Whether two words differ only in their endings: bowl and bowls, running and runs."""
    length = max(3, min(len(word), len(other)) - 2)
    return word == other or (len(word) >= length <= len(other) and word[:length] == other[:length])


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
    """Whether a question contains the whole caption, or eight of its words in a row."""
    asked, known = words(question), words(caption)
    length = min(_LEAK_WORDS, len(known))
    return any(_holds(asked, known[start : start + length]) for start in range(len(known) - length + 1))


def copied(answer: str, question: str) -> bool:
    """Whether a question without options contains its whole answer."""
    asked = words(question)
    return "or" not in asked and _holds(asked, words(answer))


def agree(answer: str, second: str) -> bool:
    """Whether two answers to a question mean the same: one has most content words of the other."""
    first, other = set(words(answer)) - _FILLERS, set(words(second)) - _FILLERS
    if not first or not other:
        return words(answer) == words(second)
    return len(first & other) >= 0.6 * min(len(first), len(other))


_FILLERS = frozenset(("a", "an", "the", "is", "are", "it", "there", "in", "on", "at", "of", "to", "and"))


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _holds(sequence: list[str], part: list[str]) -> bool:
    return any(sequence[start : start + len(part)] == part for start in range(len(sequence) - len(part) + 1))
