"""Separate a language model's reasoning (its "thought") from its answer."""

import re

_NAMES = r"(?:think|thinking|thought|thoughts|reasoning|reason|reflection|seed:think)"
# Qwen, DeepSeek and most others; Mistral; Kimi; OpenThoughts; Command; Gemma 3 and 4.
_OPENING = rf"<{_NAMES}>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<\|START_THINKING\|>|<unused94>|<\|channel>thought\b"
_OPENINGS = re.compile(_OPENING, re.IGNORECASE)
_CLOSING = rf"</{_NAMES}>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<\|END_THINKING\|>|<unused95>|<channel\|>"
_CLOSINGS = re.compile(_CLOSING, re.IGNORECASE)
# A thought at the beginning of a text: its opening mark, the thought, its closing mark.
THOUGHT_FIRST = re.compile(rf"(\s*(?:{_OPENING}))(.*?)({_CLOSING})", re.IGNORECASE | re.DOTALL)
# gpt-oss writes messages to channels, and Muse to recipients. The last message is the answer if it goes to the channel
# "final", or to the user.
_MESSAGE = r"<\|channel\|>\s*(\w+)[^<]*<\|message\|>|(?:\A|<\|start\|>assistant)\s*to=([\w.]+)<\|message\|>"
_CHANNEL = re.compile(_MESSAGE)
THOUGHT_MARKS = re.compile(rf"{_OPENING}|{_CLOSING}|<\|(?:channel|start|message|end|return|call|eom)\|>", re.IGNORECASE)
_MESSAGE_END = re.compile(r"<\|(?:end|return|call|eom)\|>")
_OPENED_LAST = re.compile(rf"(?:{_OPENING}|<\|channel\|>\s*\w+<\|message\|>)\s*\Z", re.IGNORECASE)


def split_reasoning(text: str) -> tuple[str | None, str | None]:
    """Split a model's reply into (reasoning, answer); a missing part is None.

    If the chat template wrote the opening mark of the thought, only its closing mark is in the reply. A thought without
    a closing mark has no answer after it.
    """
    if _has_channels(text):
        return _split_channels(text)
    behind = _end_of_thought(text)
    if thought_stays_open(text):
        return _without_marks(text), None
    return (_without_marks(text[:behind]) if behind else None), text[behind:].strip() or None


def thought_opened_by(prompt: str) -> str:
    """The opening mark of a thought at the end of a rendered chat, so that the reply starts inside it; else empty."""
    opening = _OPENED_LAST.search(prompt)
    return opening[0] if opening else ""


def thought_stays_open(text: str) -> bool:
    """Whether a reply ends inside a thought, or before its first message to the user."""
    if _has_channels(text):
        return _last_message(text) is None
    return _OPENINGS.search(text, _end_of_thought(text)) is not None


def _has_channels(text: str) -> bool:
    return "<|channel|>" in text or _CHANNEL.search(text) is not None


def _end_of_thought(text: str) -> int:
    return max((closing.end() for closing in _CLOSINGS.finditer(text)), default=0)


def _last_message(text: str) -> re.Match | None:
    """The header of the last message if it goes to the user, else None."""
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
