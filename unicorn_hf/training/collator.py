"""Collate tokenized samples into a batch for `UnicornForConditionalGeneration`."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from unicorn_hf.training.images import IMAGE_COLUMNS
from unicorn_hf.training.tokenization import IGNORE_INDEX


@dataclass
class UnicornCollator:
    """Collates samples into a batch: padded on the right, or flattened to one row with `padding_free`.

    Returns a dictionary of
        `input_ids` and `labels`, int64 `[batch, length]`, or `[1, total]` if flattened;
        `attention_mask`, int64 `[batch, length]`; or, if flattened, `position_ids` `[1, total]`, which restart at each
            sample, and the arguments of FlashAttention (`cu_seq_lens_q/k`, `max_length_q/k`);
        `image_embeds`, float32 `[num_images, embed_dim]`, or the inputs of the image tower (`pixel_values`, ...), in
            the order of the placeholders;
        `ids`, the samples' ids, if they have any: `UnicornTrainer` uses them in messages.

    If a batch has no image, an empty image is appended to its shortest sample. No other token attends to it, and it is
    not in the loss. So every process has a (zero) gradient for the projector in every step, and none waits for another.

    Args:
        pad_to_multiple_of: round the length of a padded batch up to a multiple of this.
    """

    processor: object
    padding_free: bool = False
    pad_to_multiple_of: int | None = None

    def __call__(self, samples: list[dict]) -> dict:
        samples = [dict(sample) for sample in samples]
        column = next((name for name in IMAGE_COLUMNS if name in samples[0]), "image_embeds")
        images = [image for sample in samples for image in _images_of(sample.get(column), column)]
        if not images:
            images = [self._add_empty_image(min(samples, key=lambda sample: len(sample["input_ids"])), column)]
        batch = self._flatten(samples) if self.padding_free else self._pad(samples)
        if column == "image_embeds":
            batch["image_embeds"] = torch.from_numpy(np.stack(images).astype(np.float32))
        else:
            batch |= self.processor(images=images, text=None, return_tensors="pt")
        if "id" in samples[0]:
            batch["ids"] = [sample["id"] for sample in samples]
        return batch

    def _add_empty_image(self, sample: dict, column: str):
        placeholders = [self.processor.image_token_id] * self.processor.num_image_tokens
        sample["input_ids"] = np.concatenate([sample["input_ids"], placeholders])
        sample["labels"] = np.concatenate([sample["labels"], [IGNORE_INDEX] * len(placeholders)])
        return np.zeros(self.processor.embed_dim) if column == "image_embeds" else Image.new("RGB", (32, 32))

    def _pad(self, samples: list[dict]) -> dict[str, torch.Tensor]:
        longest, multiple = max(len(sample["input_ids"]) for sample in samples), self.pad_to_multiple_of or 1
        shape = (len(samples), -(-longest // multiple) * multiple)
        input_ids = np.full(shape, self.processor.tokenizer.pad_token_id, dtype=np.int64)
        labels = np.full(shape, IGNORE_INDEX, dtype=np.int64)
        attention_mask = np.zeros(shape, dtype=np.int64)
        for row, sample in enumerate(samples):
            size = len(sample["input_ids"])
            input_ids[row, :size] = sample["input_ids"]
            labels[row, :size] = sample["labels"]
            attention_mask[row, :size] = 1
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def _flatten(self, samples: list[dict]) -> dict:
        lengths = [len(sample["input_ids"]) for sample in samples]
        labels = [np.array(sample["labels"], dtype=np.int64) for sample in samples]
        for sample_labels in labels:
            sample_labels[0] = IGNORE_INDEX  # else it would be predicted from the end of the previous sample
        ends = np.cumsum([0, *lengths])
        arrays = {
            "input_ids": np.concatenate([sample["input_ids"] for sample in samples]).astype(np.int64)[None],
            "labels": np.concatenate(labels)[None],
            "position_ids": np.concatenate([np.arange(length) for length in lengths])[None],
        }
        batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
        batch["cu_seq_lens_q"] = batch["cu_seq_lens_k"] = torch.from_numpy(ends.astype(np.int32))
        batch["max_length_q"] = batch["max_length_k"] = max(lengths)
        return batch


@dataclass
class PairCollator:
    """Makes a batch of pairs: the prompts with their right answers, then the same prompts with the wrong ones.

    Returns what TRL's `DPOTrainer` takes: `input_ids`, `attention_mask` and `completion_mask` (1 where an answer is),
    int64 `[2 * pairs, length]`, padded on the right; the images, and the pairs' `ids`, as `UnicornCollator` gives them.

    Args:
        pad_to_multiple_of: see `UnicornCollator`.
    """

    processor: object
    pad_to_multiple_of: int | None = None

    padding_free = False

    def __call__(self, pairs: list[dict]) -> dict:
        # A column of pictures that holds none marks the data as prepared (see `tokenization`).
        columns = (name for name in IMAGE_COLUMNS if any(pair.get(name) is not None for pair in pairs))
        column = next(columns, "image_embeds")
        samples = [
            {"input_ids": pair[f"{side}_ids"], "labels": pair[f"{side}_labels"], column: pair.get(column)}
            for side in ("chosen", "rejected")
            for pair in pairs
        ]
        batch = UnicornCollator(self.processor, pad_to_multiple_of=self.pad_to_multiple_of)(samples)
        batch["completion_mask"] = (batch.pop("labels") != IGNORE_INDEX).long()
        if "id" in pairs[0]:
            batch["ids"] = [pair["id"] for pair in pairs]
        return batch


def is_padding_free(model, batching: str) -> bool:
    """Whether to flatten batches for this model, according to `DataArguments.batching`.

    `auto` flattens if the attention implementation skips other samples, and pads if it would compute and mask them.
    """
    attention = model.config.text_config._attn_implementation or ""
    return batching == "padding-free" or (
        batching == "auto" and ("flash" in attention or attention == "flex_attention")
    )


def _images_of(value, column: str) -> list:
    """A sample's images: one, a list of them, or none."""
    if value is None:
        return []
    if column == "image_embeds":
        return list(np.atleast_2d(np.asarray(value, dtype=np.float32))) if len(value) else []
    return list(value) if isinstance(value, list) else [value]
