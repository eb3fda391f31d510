"""A language model's thought, told apart from its answer."""

import re

_NAMES = r"(?:think|thinking|thought|thoughts|reasoning|reason|reflection|seed:think)"
# Qwen, DeepSeek and most others; Mistral; Kimi; OpenThoughts; Command; Gemma.
_OPENINGS = re.compile(
    rf"<{_NAMES}>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<\|START_THINKING\|>|<unused94>", re.IGNORECASE
)
_CLOSINGS = re.compile(
    rf"</{_NAMES}>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<\|END_THINKING\|>|<unused95>", re.IGNORECASE
)
# gpt-oss writes messages to channels; the last one to "final" is its answer.
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)[^<]*<\|message\|>")
_MESSAGE_END = re.compile(r"<\|(?:end|return|call)\|>")


def split_reasoning(text: str) -> tuple[str | None, str | None]:
    """(reasoning, answer) in what a model wrote; None for what is not there.

    A thought whose beginning the chat template wrote is known by its end. One without an end has no answer behind it.
    """
    if "<|channel|>" in text:
        return _split_channels(text)
    ends = [closing.end() for closing in _CLOSINGS.finditer(text)]
    behind = ends[-1] if ends else 0
    if _OPENINGS.search(text, behind):
        return _without_marks(text), None
    return (_without_marks(text[:behind]) if ends else None), text[behind:].strip() or None


def _split_channels(text: str) -> tuple[str | None, str | None]:
    final = None
    for channel in _CHANNEL.finditer(text):
        final = channel if channel[1] == "final" else None
    if final is None:
        return _without_marks(text), None
    end = _MESSAGE_END.search(text, final.end())
    answer = text[final.end() : end.start() if end else len(text)].strip()
    return _without_marks(text[: final.start()]), answer or None


def _without_marks(thought: str) -> str | None:
    for marks in (_CHANNEL, _MESSAGE_END, _OPENINGS, _CLOSINGS):
        thought = marks.sub("", thought)
    return thought.removesuffix("<|start|>assistant").strip() or None
