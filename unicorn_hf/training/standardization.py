"""Standardize a model's input vectors with statistics of the training data, saved with the model."""

import functools
import math
from collections.abc import Iterator

import numpy as np

from unicorn_hf.errors import InputError
from unicorn_hf.training.images import is_nested, split_vectors
from unicorn_hf.transfer import Moments

STREAM_ROWS = 10_000  # measured rows of a stream; the error of their mean is a hundredth of the spread
BLOCK_ROWS = 10_000


def standardize_image_embeds(model, *datasets) -> None:
    """Make the model subtract the mean of the training vectors and scale them to a mean variance of 1. In place.

    Vectors of a contrastive space lie in a narrow cone: in each of the D dimensions, their variance is far below 1 / D.
    One scale for all dimensions keeps the geometry of the space.

    Args:
        model: a `UnicornForConditionalGeneration`.
        datasets: the training data, with the column `image_embeds` of D dimensions. Every row of a `datasets.Dataset`
            counts once, whatever its weight in a mixture; of an `IterableDataset` the first 10,000 rows count.

    Raises:
        InputError: the data have images instead of vectors.
    """
    if any("image_embeds" not in dataset.column_names for dataset in datasets):
        raise InputError("Standardizing needs image vectors (the column image_embeds), but the data have none")
    measured = (Moments.measure(vectors, "image_embeds") for dataset in datasets for vectors in _vectors_of(dataset))
    moments = functools.reduce(Moments.merge, measured)
    scale = math.sqrt(len(moments.mean) / moments.trace)
    model.model.set_image_embeds_statistics(mean=moments.mean, scale=scale)


def _vectors_of(dataset) -> Iterator:
    """The vectors as sources for `Moments.measure`: the dataset itself, or arrays if rows have lists of vectors."""
    dataset = dataset.select_columns(["image_embeds"])
    if not hasattr(dataset, "__len__"):
        rows = (np.ravel(row["image_embeds"]) for row in dataset.take(STREAM_ROWS))
        yield np.array(list(rows), np.float32)
    elif is_nested(dataset.features["image_embeds"]):
        for table in dataset.with_format("arrow").iter(BLOCK_ROWS):
            _, vectors = split_vectors(table.column(0))
            yield vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(vectors), -1)
    else:
        yield dataset
