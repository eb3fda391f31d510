"""Separate the answer in a model's reply from its thought, in a whole reply or while it is written."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from transformers.generation.streamers import BaseStreamer

from unicorn_hf.reasoning import split_reasoning, thought_opened_by, thought_stays_open

_ENDS_IN_A_MARK = re.compile(r"[<\[◁][^<>\[\]◁▷\n]{0,24}\Z")  # possibly the beginning of a mark


@dataclass(frozen=True)
class Reply:
    """
    Attributes:
        answer: the answer without marks of the chat format; empty if there is none.
        reasoning: the thought before it, if there is one.
        is_unfinished: whether the reply was cut off inside a thought, so there is no answer.
    """

    answer: str
    reasoning: str | None = None
    is_unfinished: bool = False


def read_reply(tokenizer, token_ids, prompt: str = "") -> Reply:
    """The reply in the tokens that a model wrote.

    Args:
        tokenizer: the model's.
        token_ids: the new tokens, int `[num_tokens]`, with end and padding tokens.
        prompt: the rendered chat before them; if it opens a thought, the reply begins inside it.
    """
    # Marks of a thought are special tokens in some tokenizers, so special tokens are removed only after the split.
    text = thought_opened_by(prompt) + tokenizer.decode(token_ids, skip_special_tokens=False)
    reasoning, answer = split_reasoning(text)
    if answer is None:
        is_open = thought_stays_open(text)
        return Reply("", reasoning and _without_special_tokens(tokenizer, reasoning), is_open or reasoning is not None)
    if answer == text.strip():
        return Reply(tokenizer.decode(token_ids, skip_special_tokens=True).strip())
    return Reply(
        _without_special_tokens(tokenizer, answer), reasoning and _without_special_tokens(tokenizer, reasoning)
    )


class ReplyStreamer(BaseStreamer):
    """Show an answer while `generate` writes it, without the thought before it.

    Args:
        tokenizer, prompt: as for `read_reply`.
        show: called with the answer so far, whenever it has grown.
    """

    def __init__(self, tokenizer, prompt: str, show: Callable[[str], None]):
        self.tokenizer, self.prompt, self.show = tokenizer, prompt, show
        self.token_ids, self.shown, self.is_prompt = [], "", True

    def put(self, value) -> None:
        if self.is_prompt:  # the first call of `generate` passes the prompt's tokens
            self.is_prompt = False
            return
        self.token_ids += value.flatten().tolist()
        answer = read_reply(self.tokenizer, self.token_ids, self.prompt).answer
        self._show(_ENDS_IN_A_MARK.sub("", answer).rstrip("\N{REPLACEMENT CHARACTER}").rstrip())

    def end(self) -> None:
        self._show(read_reply(self.tokenizer, self.token_ids, self.prompt).answer)

    def _show(self, answer: str) -> None:
        if answer and answer != self.shown:
            self.shown = answer
            self.show(answer)


def until(answer: str, ends) -> str:
    """An answer up to the first of its stop strings; `ends` is one or a list of them."""
    for end in filter(None, [ends] if isinstance(ends, str) else ends or []):
        answer = answer.split(end)[0]
    return answer.strip()


def _without_special_tokens(tokenizer, text: str) -> str:
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    special = sorted({*special, *tokenizer.all_special_tokens}, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, special)), "", text).strip() if special else text
