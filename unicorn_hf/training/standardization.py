"""Input conditioning that is learnt from the training vectors and saved with the model."""

import math
from collections.abc import Iterator

import numpy as np

from unicorn_hf.errors import InputError
from unicorn_hf.training.images import is_nested, split_vectors
from unicorn_hf.transfer import Moments

STREAM_ROWS = 10_000  # of a stream: the error of a mean over so many is a hundredth of the spread
BLOCK_ROWS = 10_000


def standardize_image_embeds(model, *datasets) -> None:
    """Have the model subtract the training vectors' mean and scale them to a mean variance of 1. In place.

    Vectors of a contrastive space lie in a narrow cone: unit length, D dimensions, a variance far below 1 / D in each.
    One scale for all dimensions keeps the geometry of the space.

    Args:
        model: a `UnicornForConditionalGeneration`.
        datasets: the training data, with the column `image_embeds` of D dimensions; every row of a `datasets.Dataset`
            counts once, whatever its weight in a mixture, and of an `IterableDataset` the first 10,000.

    Raises:
        InputError: the data have pictures in place of vectors.
    """
    moments = None
    for dataset in datasets:
        if "image_embeds" not in dataset.column_names:
            raise InputError("Standardizing needs image vectors (the column image_embeds), and the data have none")
        for vectors in _vectors_of(dataset):
            measured = Moments.measure(vectors, "image_embeds")
            moments = measured if moments is None else moments.merge(measured)
    scale = math.sqrt(len(moments.mean) / moments.trace)
    model.model.set_image_embeds_statistics(mean=moments.mean, scale=scale)


def _vectors_of(dataset) -> Iterator:
    """The vectors in what `Moments.measure` reads: the dataset itself, or arrays where a row has lists of vectors."""
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
