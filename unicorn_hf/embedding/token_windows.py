"""Text -> windows of token ids -> padded tensors, in the same way for every library's tokenizer."""

import dataclasses
from collections.abc import Callable, Sequence

import torch


@dataclasses.dataclass
class TokenWindows:
    """Cuts texts into windows that a text tower can take.

    A window is `prefix + content + suffix` of at most `max_tokens` ids. A text that fits has one window, which is what
    the library's own tokenizer gives; the first window of a text that does not is what the library's truncation leaves.

    Args:
        encode: texts -> ids without special tokens, not truncated.
        prefix, suffix: the special tokens around the content.
        max_tokens: the tower's context length.
        pad_id: the id that fills up a row.
        pad_to_max: the tower reads its padding (SigLIP pools the last position), so every row is `max_tokens` long.
        pad_left: the padding comes first.
    """

    encode: Callable[[Sequence[str]], list[list[int]]]
    prefix: list[int]
    suffix: list[int]
    max_tokens: int
    pad_id: int
    pad_to_max: bool = False
    pad_left: bool = False

    def __call__(self, texts: Sequence[str]) -> list[list[list[int]]]:
        """The windows of each text."""
        size = self.max_tokens - len(self.prefix) - len(self.suffix)
        return [
            [self.prefix + ids[start : start + size] + self.suffix for start in range(0, max(1, len(ids)), size)]
            for ids in self.encode(texts)
        ]

    def pad(self, windows: Sequence[list[int]]) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask` (int64, `[len(windows), longest]`)."""
        length = self.max_tokens if self.pad_to_max else max(map(len, windows))
        input_ids = torch.full((len(windows), length), self.pad_id)
        attention_mask = torch.zeros_like(input_ids)
        for row, window in enumerate(windows):
            place = slice(length - len(window), length) if self.pad_left else slice(len(window))
            input_ids[row, place] = torch.tensor(window)
            attention_mask[row, place] = 1
        return {"input_ids": input_ids, "attention_mask": attention_mask}


def special_tokens(tokenizer) -> tuple[list[int], list[int]]:
    """The ids that a transformers tokenizer puts before and after a text."""
    whole = tokenizer("a").input_ids
    content = tokenizer("a", add_special_tokens=False).input_ids
    start = next(i for i in range(len(whole)) if whole[i : i + len(content)] == content)
    return whole[:start], whole[start + len(content) :]
