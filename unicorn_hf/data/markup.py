"""Text that enters is data: what a prompt's format or a tokenizer would read as a mark in it loses its brackets."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_BRACKETS = re.compile(r"[<>\[\]/|◁▷＜＞［］｜]")
_IN_BRACKETS = [re.compile(r"<([^<>]*)>"), re.compile(r"\[([^\[\]]*)\]"), re.compile(r"◁([^◁▷]*)▷")]
_BARRED = re.compile(r"[|｜].*[|｜]|[|｜]\S+|\S+[|｜]", re.DOTALL)  # <|im_start|>, <|turn>, <turn|>
_NAME = re.compile(r"/?[\w:-]+")
_CAPITALS = re.compile(r"/?(?:[A-Z\d_]{2,}|[gs]MASK|(?i:inst)|control_\d+)")
# What the names of marks are made of: <image>, <unused0>, <extra_id_0>, [IMG]; the second kind beside other words only:
# <start_of_turn>, <vision_start>, <tool_call>, [IMG_END].
_WORDS = frozenset(
    re.findall(
        r"\w+",
        """args assistant audio bos bot box cls control dummy endofchunk endoftext eod eom eop eos eot fim gmask human
        im image images img inst loc mask middle obj pad placeholder prefix quad ref reserved s seg sep smask sop
        speech startoftext suffix sys system think thinking thought tool tools turn unk unused user video""",
    )
)
_PARTS = _WORDS | frozenset(
    re.findall(
        r"\w+",
        """av begin call calls content custom empty end extra fake fillin frame func function masked modality multimodal
        output patch pixel point poly query region soft special start token transcribe vid vision""",
    )
)
# Tags that some tokenizers, Gemma's say, have as words of their own: they steer nothing.
_HTML = re.compile(
    r"</?(?:a|b|blockquote|br|caption|code|div|em|h[1-6]|hr|i|li|ol|p|pre|s|span|strong|sub|sup|table|tbody|td|tfoot|th"
    r"|thead|tr|u|ul)>"
)
_BRACKETED = re.compile(r"[<\[◁|｜＜［].*\w.*[>\]▷|｜＞］]", re.DOTALL)
_MOST_PASSES = 8  # text that is nested deeper is an attack, and loses all its brackets


@dataclass(frozen=True)
class Marks:
    """What a tokenizer reads as one token of its own wherever it stands in a text.

    Attributes:
        pattern: finds them as they are written, the longest first.
        ids: of those tokens.
        tokenizer: that tokenizer, where it looks for some of them in the normalized text; their ids, and a pattern that
            finds them in there, are `normalized_ids` and `normalized_pattern`.
    """

    pattern: re.Pattern
    ids: frozenset
    tokenizer: Any = None
    normalized_ids: frozenset = frozenset()
    normalized_pattern: re.Pattern | None = None


def marks_of(tokenizer) -> Marks:
    """The added and special tokens of a tokenizer but those that are plain text: white space, words, HTML tags."""
    added = tokenizer.added_tokens_decoder
    special = {token.content: token.special for token in added.values()}
    special |= dict.fromkeys(tokenizer.all_special_tokens, True)
    marks = {token for token, is_special in special.items() if _steers(token, is_special)}
    pattern, ids = any_of(marks), frozenset(tokenizer.convert_tokens_to_ids(sorted(marks)))
    normalized = {id_: token.content for id_, token in added.items() if token.normalized and token.content in marks}
    normalizer = tokenizer.backend_tokenizer.normalizer if normalized and tokenizer.is_fast else None
    if normalizer is None:
        return Marks(pattern, ids)
    contents = {*normalized.values(), *map(normalizer.normalize_str, normalized.values())}
    return Marks(pattern, ids, tokenizer, frozenset(normalized), any_of(contents))


def without_marks(text: str, marks: Marks | None = None) -> str:
    """`text` without marks: `<image>` and `<|im_start|>` keep their words and lose their brackets.

    A mark that comes of taking others out (`<im<image>age>`) goes too. A mark without brackets gets a space behind its
    first character.

    Args:
        marks: of the tokenizer that is to read the text (`marks_of`); by default, where nobody knows which one will,
            what chat templates, image processors and tokenizers of the common families read as marks.
    """
    passes = 0
    while (words := _strip(text, marks)) != text:
        passes += 1
        text = _BRACKETS.sub("", words) if passes == _MOST_PASSES else words
    return text


def _steers(token: str, is_special: bool) -> bool:
    """Whether an added token is more than plain text."""
    if not token.strip(" \t\r\n▁"):
        return False
    if is_special:
        return len(token) > 1 or not token.isprintable()  # a character is text, whatever else it serves for
    return _BRACKETED.fullmatch(token) is not None and _HTML.fullmatch(token) is None


def any_of(marks: Iterable[str]) -> re.Pattern:
    """A pattern that finds any of `marks` as they are written, the longest first."""
    longest_first = sorted(marks, key=lambda mark: (-len(mark), mark))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _strip(text: str, marks: Marks | None) -> str:
    if marks is None:
        for pattern in _IN_BRACKETS:
            text = pattern.sub(lambda found: _as_words(found[0]) if _looks_like_a_mark(found) else found[0], text)
        return text
    text = marks.pattern.sub(lambda found: _as_words(found[0]), text)
    if marks.normalized_pattern is None:
        return text
    if marks.normalized_pattern.search(marks.tokenizer.backend_tokenizer.normalizer.normalize_str(text)):
        encoded = marks.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        tokens = list(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))
        for id_, (start, end) in reversed(tokens):
            if id_ in marks.normalized_ids:
                text = text[:start] + _as_words(text[start:end]) + text[end:]
    return text


def _looks_like_a_mark(found: re.Match) -> bool:
    bracket, name = found[0][0], found[1]
    if bracket == "◁" or (bracket == "<" and _BARRED.fullmatch(name)):
        return True
    if not (_NAME if bracket == "<" else _CAPITALS).fullmatch(name):
        return False
    words = re.findall(r"[^\W\d_]+|\d+", name.lower())
    known = _PARTS if len(words) > 1 else _WORDS
    return not known.isdisjoint(words)


def _as_words(mark: str) -> str:
    words = _BRACKETS.sub("", mark)
    return words if words != mark else f"{mark[0]} {mark[1:]}" if len(mark) > 1 else ""
