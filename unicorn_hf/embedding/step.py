"""`embed`: a dataset with a text or an image column -> the same plus a column of vectors."""

import datasets
import numpy as np
import pyarrow as pa

from unicorn_hf import storage
from unicorn_hf.embedding.encoder import Encoder, load_encoder
from unicorn_hf.errors import InputError


def embed(
    data,
    output=None,
    *,
    encoder: str | Encoder = "sandbox",
    text_column: str | None = None,
    image_column: str | None = None,
    batch_size: int | str = "auto",
    overflow: str = "truncate",
) -> datasets.Dataset:
    """Add `text_embeds` or `image_embeds` to a dataset.

    Args:
        data: a `datasets.Dataset`, a dataset folder, a data file, an image folder, or the id of a dataset on the Hub.
        output: the folder to write; nothing is written where it is None.
        encoder: an encoder, or its name for `load_encoder`.
        text_column, image_column: the column to embed, one of the two; by default `caption` or `text`, else `image`.
        batch_size: rows in a batch, or `auto`.
        overflow: what becomes of texts that are longer than the encoder's context: `truncate`, `error` or `mean`.

    Returns:
        the dataset with the column `text_embeds` or `image_embeds`, `List(float16, length=embed_dim)`, unit length.

    Raises:
        InputError: the data, the column, the encoder or the output cannot be used.
    """
    if output is not None:
        storage.check_new_folder(output)
    dataset = storage.read_dataset(data)
    column, kind = choose_column(dataset, text_column, image_column, source=data)
    if not isinstance(encoder, Encoder):
        encoder = load_encoder(encoder)
    if kind == "text":
        vectors = encoder.encode_text(dataset[column][:], batch_size=batch_size, overflow=overflow)
    else:
        vectors = encoder.encode_images(dataset[column][:], batch_size=batch_size)
    dataset = add_vectors(dataset, f"{kind}_embeds", vectors)
    if output is not None:
        provenance = {f"{kind}_embeds": {"encoder": encoder.name, "embed_dim": encoder.embed_dim}}
        storage.write_dataset(dataset, output, title=f"Vectors of {encoder.name}", provenance=provenance)
    return dataset


def choose_column(dataset, text_column: str | None, image_column: str | None, *, source) -> tuple[str, str]:
    """The column to embed and its kind, `text` or `image`.

    Raises:
        InputError: both are given, the one that is given does not exist, or none of the usual ones does.
    """
    if text_column and image_column:
        raise InputError("text_column and image_column are both given; expected one of the two")
    for column, kind in ((text_column, "text"), (image_column, "image")):
        if column:
            storage.check_columns(dataset, column, source=source)
            return column, kind
    for column, kind in (("caption", "text"), ("text", "text"), ("image", "image"), ("jpg", "image"), ("png", "image")):
        if column in dataset.column_names:
            return column, kind
    raise InputError(
        f"{source}: has no column caption, text or image; name the one to embed, of {', '.join(dataset.column_names)}"
    )


def add_vectors(dataset: datasets.Dataset, name: str, vectors: np.ndarray) -> datasets.Dataset:
    """`dataset` with the rows of `vectors` as the column `name`, in float16; a column of that name is replaced."""
    if name in dataset.column_names:
        dataset = dataset.remove_columns(name)
    embed_dim = vectors.shape[1]
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float16).reshape(-1)), embed_dim)
    return dataset.add_column(name, column, feature=datasets.List(datasets.Value("float16"), length=embed_dim))
