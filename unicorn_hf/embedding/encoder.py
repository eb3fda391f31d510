"""`Encoder`: the two towers of a contrastive model with their tokenizer and image transform."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from unicorn_hf.data.images import open_image
from unicorn_hf.embedding.batches import TextBatches, decode_images, image_batch_size
from unicorn_hf.embedding.token_windows import TokenWindows
from unicorn_hf.errors import InputError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Encoder:
    """Text and images -> unit vectors of one contrastive space.

    Attributes:
        name: the name it was loaded by; recorded with every vector that it makes.
        embed_dim: the dimension of its vectors.
        device, dtype: the device and precision of its towers.
    """

    def __init__(
        self,
        name: str,
        *,
        tokenizer: TokenWindows,
        transform: Callable[..., dict[str, torch.Tensor]],
        text_tower: Callable[[dict[str, torch.Tensor]], torch.Tensor],
        image_tower: Callable[[dict[str, torch.Tensor]], torch.Tensor],
        device: torch.device,
        dtype: torch.dtype,
        read: Callable = open_image,
        compile: bool = False,
    ):
        self.name = name
        self.tokenizer = tokenizer
        self.transform, self.read = transform, read
        self.text_tower = text_tower
        self.image_tower = image_tower
        self.device = device
        self.dtype = dtype
        self.embed_dim = self.forward(text_tower, tokenizer.pad(tokenizer(["a"])[0])).shape[-1]
        if compile:
            self.text_tower = torch.compile(text_tower, dynamic=True)
            self.image_tower = torch.compile(image_tower, dynamic=True)

    def encode_text(
        self, texts: Sequence[str], *, batch_size: int | str = "auto", overflow: str = "truncate"
    ) -> np.ndarray:
        """Unit vectors of texts, in their order.

        Args:
            texts: any number of strings.
            batch_size: texts per batch; `auto` fills a budget of tokens.
            overflow: what to do with a text longer than the tower's context: `truncate` it, raise an `error`, or take
                the `mean` of the vectors of its windows.

        Returns:
            float32 `[len(texts), embed_dim]`, rows of length one.

        Raises:
            InputError: a text is not a string, or is longer than the context and `overflow` is `error`.
        """
        if isinstance(texts, str):
            raise InputError(f"texts is one text ({texts[:60]!r}); expected a list of texts")
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(
                    f"text {row} of {len(texts)} is {str(text)[:60]!r} ({type(text).__name__}); expected text"
                )
        batches = TextBatches(self.tokenizer, texts, overflow=overflow, batch_size=batch_size, device=self.device)
        vectors = torch.empty(batches.num_windows, self.embed_dim, device=self.device)
        for windows, inputs in batches:
            vectors[windows.to(self.device)] = self.forward(self.text_tower, inputs)
        return mean_of_windows(vectors, batches.windows_per_text).cpu().numpy()

    def encode_images(self, images: Sequence, *, batch_size: int | str = "auto") -> np.ndarray:
        """Unit vectors of images, in their order.

        Args:
            images: PIL images, paths, or the bytes of image files; where the encoder is one of sounds (CLAP), paths or
                the bytes of audio files.
            batch_size: images per batch, or `auto`.

        Returns:
            float32 `[len(images), embed_dim]`, rows of length one.

        Raises:
            InputError: an image cannot be decoded.
        """
        if isinstance(images, str | bytes):
            raise InputError("images is one path, or the bytes of one file; expected a list of images")
        size = image_batch_size(batch_size, self.device)
        vectors = torch.empty(len(images), self.embed_dim, device=self.device)
        for start in range(0, len(images), size):
            stop = min(start + size, len(images))
            inputs, failures = decode_images(images[start:stop], self.transform, self.read)
            for row, reason in failures.items():
                raise InputError(f"image {start + row} of {len(images)} cannot be decoded: {reason}")
            vectors[start:stop] = self.forward(self.image_tower, inputs)
        return vectors.cpu().numpy()

    @torch.inference_mode()
    def forward(self, tower: Callable, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Unit vectors of one prepared batch: float32 `[batch, embed_dim]`, on the encoder's device.

        If a batch does not fit into the device's memory, its halves are run one after the other.
        """
        try:
            on_device = {name: tensor.to(self.device, non_blocking=True) for name, tensor in inputs.items()}
            return torch.nn.functional.normalize(tower(on_device).float(), dim=-1)
        except torch.OutOfMemoryError:
            size = len(next(iter(inputs.values())))
            if size == 1:
                raise
        halves = [slice(0, size // 2), slice(size // 2, size)]
        return torch.cat(
            [self.forward(tower, {name: tensor[half] for name, tensor in inputs.items()}) for half in halves]
        )


def mean_of_windows(vectors: torch.Tensor, windows_per_text: Sequence[int]) -> torch.Tensor:
    """The normalized mean of each text's windows: `[sum(windows_per_text), D]` -> `[len(windows_per_text), D]`."""
    if len(vectors) == len(windows_per_text):
        return vectors
    lengths = torch.tensor(windows_per_text, device=vectors.device)
    return torch.nn.functional.normalize(torch.segment_reduce(vectors, "mean", lengths=lengths), dim=-1)
