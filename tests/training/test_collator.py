import numpy as np
import torch

from unicorn_hf.training import ImageEmbedsCollator


def sample(*ids, vector=None):
    row = {"input_ids": np.array(ids), "labels": np.array(ids)}
    return row if vector is None else {**row, "image_embeds": np.array(vector, dtype=np.float16)}


def test_short_samples_are_padded_on_the_right_and_their_padding_is_not_learnt():
    batch = ImageEmbedsCollator(pad_token_id=9)([sample(1, 2, 3), sample(4)])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["labels"].tolist() == [[1, 2, 3], [4, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert "image_embeds" not in batch


def test_vectors_are_stacked_in_float32_in_the_order_of_the_samples_that_have_one():
    batch = ImageEmbedsCollator(pad_token_id=0)([sample(1, vector=[1, 2]), sample(2), sample(3, vector=[3, 4])])
    assert batch["image_embeds"].dtype == torch.float32
    assert batch["image_embeds"].tolist() == [[1, 2], [3, 4]]
