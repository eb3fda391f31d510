"""A language model's thought, told apart from its answer."""

import re

_NAMES = r"(?:think|thinking|thought|thoughts|reasoning|reason|reflection|seed:think)"
# Qwen, DeepSeek and most others; Mistral; Kimi; OpenThoughts; Command; Gemma 3 and 4.
_OPENING = rf"<{_NAMES}>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<\|START_THINKING\|>|<unused94>|<\|channel>thought\b"
_OPENINGS = re.compile(_OPENING, re.IGNORECASE)
_CLOSING = rf"</{_NAMES}>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<\|END_THINKING\|>|<unused95>|<channel\|>"
_CLOSINGS = re.compile(_CLOSING, re.IGNORECASE)
# A thought that a text begins with: its opening mark, what is thought, its closing mark.
THOUGHT_FIRST = re.compile(rf"(\s*(?:{_OPENING}))(.*?)({_CLOSING})", re.IGNORECASE | re.DOTALL)
# gpt-oss writes messages to channels, and Muse to addressees; the last one to "final", or to the user, is the answer.
_MESSAGE = r"<\|channel\|>\s*(\w+)[^<]*<\|message\|>|(?:\A|<\|start\|>assistant)\s*to=([\w.]+)<\|message\|>"
_CHANNEL = re.compile(_MESSAGE)
THOUGHT_MARKS = re.compile(rf"{_OPENING}|{_CLOSING}|<\|(?:channel|start|message|end|return|call|eom)\|>", re.IGNORECASE)
_MESSAGE_END = re.compile(r"<\|(?:end|return|call|eom)\|>")
_OPENED_LAST = re.compile(rf"(?:{_OPENING}|<\|channel\|>\s*\w+<\|message\|>)\s*\Z", re.IGNORECASE)


def split_reasoning(text: str) -> tuple[str | None, str | None]:
    """(reasoning, answer) in what a model wrote; None for what is not there.

    A thought whose beginning the chat template wrote is known by its end. One without an end has no answer behind it.
    """
    if _has_channels(text):
        return _split_channels(text)
    behind = _end_of_thought(text)
    if thought_stays_open(text):
        return _without_marks(text), None
    return (_without_marks(text[:behind]) if behind else None), text[behind:].strip() or None


def thought_opened_by(prompt: str) -> str:
    """What a rendered chat ends with that opens a thought, so that the reply begins inside of it; often nothing."""
    opening = _OPENED_LAST.search(prompt)
    return opening[0] if opening else ""


def thought_stays_open(text: str) -> bool:
    """Whether what a model wrote ends inside a thought, or before its first message to the user."""
    if _has_channels(text):
        return _last_message(text) is None
    return _OPENINGS.search(text, _end_of_thought(text)) is not None


def _has_channels(text: str) -> bool:
    return "<|channel|>" in text or _CHANNEL.search(text) is not None


def _end_of_thought(text: str) -> int:
    return max((closing.end() for closing in _CLOSINGS.finditer(text)), default=0)


def _last_message(text: str) -> re.Match | None:
    """The head of the last message, where that is to the user."""
    final = None
    for message in _CHANNEL.finditer(text):
        final = message if message[1] == "final" or message[2] == "user" else None
    return final


def _split_channels(text: str) -> tuple[str | None, str | None]:
    final = _last_message(text)
    if final is None:
        return _without_marks(text), None
    end = _MESSAGE_END.search(text, final.end())
    answer = text[final.end() : end.start() if end else len(text)].strip()
    return _without_marks(text[: final.start()]), answer or None


def _without_marks(thought: str) -> str | None:
    for marks in (_CHANNEL, _MESSAGE_END, _OPENINGS, _CLOSINGS):
        thought = marks.sub("", thought)
    return thought.removesuffix("<|start|>assistant").strip() or None
