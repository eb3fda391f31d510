"""Sets of vectors that the tests of `data` and of `transfer` share."""

import datasets
import numpy as np
import pytest

from unicorn_hf.data.dataset_folder import write_dataset

DIM = 32


def cone(rows, seed, dim=DIM):
    """Vectors around a direction of their own, with more spread in some directions than in others."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(dim) + rng.standard_normal((rows, dim)) * np.geomspace(2, 0.3, dim)).astype(np.float16)


@pytest.fixture
def text():
    return cone(1500, 1)


@pytest.fixture
def image():
    return cone(900, 2)


@pytest.fixture
def make_dataset():
    """A dataset with an id, a caption and a column of vectors."""

    def make(rows, column="text_embeds"):
        features = {
            "id": datasets.Value("string"),
            "caption": datasets.Value("string"),
            column: datasets.List(datasets.Value("float16"), length=rows.shape[1]),
        }
        ids = [f"a{row}" for row in range(len(rows))]
        data = {"id": ids, "caption": ["a red circle"] * len(rows), column: list(rows)}
        return datasets.Dataset.from_dict(data, features=datasets.Features(features))

    return make


@pytest.fixture
def make_folder(make_dataset, tmp_path):
    """A dataset folder whose card names the encoder."""

    def make(rows, column="text_embeds", encoder="sandbox"):
        provenance = {column: {"encoder": encoder, "embed_dim": rows.shape[1]}}
        output = tmp_path / f"{column}-{encoder}"
        return write_dataset(make_dataset(rows, column), output, title=column, provenance=provenance)

    return make
