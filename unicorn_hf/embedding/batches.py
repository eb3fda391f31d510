"""The work of a worker process: texts -> token batches sorted by length, image files -> stacked tensors."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import get_args

import torch

from unicorn_hf.data.images import open_image
from unicorn_hf.embedding.config import Overflow
from unicorn_hf.embedding.token_windows import TokenWindows
from unicorn_hf.errors import InputError

OVERFLOWS = get_args(Overflow)
# Sizes for `auto`: large enough to hide the overhead of a batch, small enough for the cache (CPU) or memory (GPU).
# They are constants, not measured at the start: the last bit of a vector depends on its batch, so runs would differ.
TOKENS_PER_BATCH = {"cpu": 1024, "cuda": 65536}
IMAGES_PER_BATCH = {"cpu": 16, "cuda": 256}


class TextBatches:
    """The token windows of some texts, in batches of similar length, longest first.

    Iterating gives `(windows, inputs)`. `windows` (int64 `[batch]`) are the indices of the batch's windows among all
    windows, which are numbered text by text; `inputs` are the tensors for the text tower.

    Attributes:
        windows_per_text: the number of windows of each text; one, unless `overflow` is `mean`.
        num_windows, num_tokens, num_padded: totals of windows, of tokens, and of tokens with padding.
        num_overflowing: the number of texts longer than the context.

    Raises:
        InputError: a text is longer than the context and `overflow` is `error`; `labels` name the texts in messages.
    """

    def __init__(
        self,
        tokenizer: TokenWindows,
        texts: Sequence[str],
        *,
        overflow: str = "truncate",
        batch_size: int | str = "auto",
        device: torch.device,
        labels: Sequence | None = None,
    ):
        if overflow not in OVERFLOWS:
            raise InputError(f"overflow {overflow!r} is not known; expected one of {', '.join(OVERFLOWS)}")
        windows = tokenizer(texts)
        self.num_overflowing = sum(len(each) > 1 for each in windows)
        if overflow == "error" and self.num_overflowing:
            row = next(row for row, each in enumerate(windows) if len(each) > 1)
            raise InputError(
                f"text {labels[row] if labels else row} ({texts[row][:60]!r}…) is longer than the encoder's "
                f"{tokenizer.max_tokens} tokens; shorten it, or choose the overflow truncate or mean"
            )
        if overflow == "truncate":
            windows = [each[:1] for each in windows]
        self.windows_per_text = [len(each) for each in windows]
        self._windows = [window for each in windows for window in each]
        self._tokenizer = tokenizer
        self._batches = self._make_batches(batch_size, TOKENS_PER_BATCH.get(device.type, TOKENS_PER_BATCH["cuda"]))
        self.num_windows = len(self._windows)
        self.num_tokens = sum(map(len, self._windows))
        self.num_padded = sum(len(batch) * self._length(batch[0]) for batch in self._batches)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
        for batch in self._batches:
            yield torch.tensor(batch), self._tokenizer.pad([self._windows[place] for place in batch])

    def _make_batches(self, batch_size: int | str, budget: int) -> list[list[int]]:
        order = sorted(range(len(self._windows)), key=lambda place: -len(self._windows[place]))
        batches, start = [], 0
        while start < len(order):
            size = batch_size if batch_size != "auto" else max(1, budget // self._length(order[start]))
            batches.append(order[start : start + size])
            start += size
        return batches

    def _length(self, place: int) -> int:
        return self._tokenizer.max_tokens if self._tokenizer.pad_to_max else len(self._windows[place])


def image_batch_size(batch_size: int | str, device: torch.device) -> int:
    return IMAGES_PER_BATCH.get(device.type, IMAGES_PER_BATCH["cuda"]) if batch_size == "auto" else batch_size


def decode_images(
    images: Sequence, transform: Callable[..., dict[str, torch.Tensor]], read: Callable = open_image
) -> tuple[dict[str, torch.Tensor], dict[int, str]]:
    """The image tower's inputs for the images that can be decoded, and index -> reason for the others."""
    examples, failures = [], {}
    for place, image in enumerate(images):
        try:
            examples.append(transform(read(image)))
        except Exception as error:  # Pillow and its plug-ins raise dozens of types for broken files
            # Some messages of Pillow have a memory address, which differs in every run.
            failures[place] = re.sub(r" <[^>]* at 0x[0-9a-f]+>", "", f"{type(error).__name__}: {error}")
    names = examples[0] if examples else ()
    return {name: torch.stack([example[name] for example in examples]) for name in names}, failures
