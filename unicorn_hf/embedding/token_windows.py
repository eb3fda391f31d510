"""Text -> windows of token ids -> padded tensors, for the tokenizer of any library."""

import dataclasses
from collections.abc import Callable, Sequence

import torch

from unicorn_hf.data.markup import marks_of, without_marks


@dataclasses.dataclass
class TokenWindows:
    """Cuts texts into windows that fit the context of a text tower.

    A window is `prefix + content + suffix`, at most `max_tokens` ids. A text that fits has one window, the same ids as
    from the library's own tokenizer, unless it spells a special token (`content_encoder`). The first window of a longer
    text is the same as the library's truncation.

    Args:
        encode: texts -> ids without special tokens, not truncated.
        prefix, suffix: the special tokens around the content.
        max_tokens: the tower's context length.
        pad_id: the padding id.
        pad_to_max: pad every row to `max_tokens`, for towers that read their padding (SigLIP pools the last position).
        pad_left: put the padding first.
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
        """`input_ids` and `attention_mask`, int64 `[len(windows), longest]`."""
        length = self.max_tokens if self.pad_to_max else max(map(len, windows))
        input_ids = torch.full((len(windows), length), self.pad_id)
        attention_mask = torch.zeros_like(input_ids)
        for row, window in enumerate(windows):
            place = slice(length - len(window), length) if self.pad_left else slice(len(window))
            input_ids[row, place] = torch.tensor(window)
            attention_mask[row, place] = 1
        return {"input_ids": input_ids, "attention_mask": attention_mask}


def content_encoder(tokenizer) -> Callable[[Sequence[str]], list[list[int]]]:
    """A function from texts to ids without special tokens, for a transformers tokenizer.

    A special token that a text spells loses its brackets: CLIP would take the vector at the first `<|endoftext|>`, and
    not see the rest of the caption.
    """
    marks = marks_of(tokenizer)

    def encode(texts):
        texts = list(texts)
        if not texts:  # tokenizers of transformers do not take an empty list
            return []
        rows = tokenizer(texts, add_special_tokens=False, verbose=False).input_ids
        for row, (text, ids) in enumerate(zip(texts, rows, strict=True)):
            if not marks.ids.isdisjoint(ids):
                rows[row] = tokenizer(without_marks(text, marks), add_special_tokens=False, verbose=False).input_ids
        return rows

    return encode


def special_tokens(tokenizer) -> tuple[list[int], list[int]]:
    """The ids that a transformers tokenizer puts before and after a text."""
    whole = tokenizer("a").input_ids
    content = tokenizer("a", add_special_tokens=False).input_ids
    start = next(i for i in range(len(whole)) if whole[i : i + len(content)] == content)
    return whole[:start], whole[start + len(content) :]
