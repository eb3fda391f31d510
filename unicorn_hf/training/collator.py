"""Tokenized samples -> a batch for `UnicornForConditionalGeneration`."""

from dataclasses import dataclass

import numpy as np
import torch

from unicorn_hf.training.tokenization import IGNORE_INDEX


@dataclass
class ImageEmbedsCollator:
    """Pads token ids and labels on the right, and stacks the image vectors in the order of their placeholders.

    Returns a dictionary of `input_ids`, `attention_mask` and `labels`, int64 `[batch, length]`, and `image_embeds`,
    float32 `[num_images, embed_dim]`, which is absent where no sample of the batch has a vector.
    """

    pad_token_id: int

    def __call__(self, samples: list[dict]) -> dict[str, torch.Tensor]:
        length = max(len(sample["input_ids"]) for sample in samples)
        shape = (len(samples), length)
        input_ids = np.full(shape, self.pad_token_id, dtype=np.int64)
        labels = np.full(shape, IGNORE_INDEX, dtype=np.int64)
        attention_mask = np.zeros(shape, dtype=np.int64)
        for row, sample in enumerate(samples):
            size = len(sample["input_ids"])
            input_ids[row, :size] = sample["input_ids"]
            labels[row, :size] = sample["labels"]
            attention_mask[row, :size] = 1
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        vectors = [sample["image_embeds"] for sample in samples if sample.get("image_embeds") is not None]
        if vectors:
            batch["image_embeds"] = np.stack(vectors).astype(np.float32)
        tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
        # Not for the model: `UnicornTrainer` names them where a batch goes wrong.
        return {**tensors, "ids": [sample["id"] for sample in samples]} if "id" in samples[0] else tensors
