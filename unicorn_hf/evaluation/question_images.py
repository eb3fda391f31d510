"""The image vectors of a dataset's questions."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import xxhash

from unicorn_hf.data.provenance import Origin, read_provenance
from unicorn_hf.data.tables import DatasetTables
from unicorn_hf.data.usable_vectors import find_unusable, what_is_wrong
from unicorn_hf.data.vector_sets import TableVectors
from unicorn_hf.errors import InputError
from unicorn_hf.evaluation.images import encode_images, find_image_encoder, read_image
from unicorn_hf.progress import progress_bar

_AT_A_TIME = 64  # decoded images in memory


def read_vectors(dataset, source, model, processor, encoder=None, transfer=None) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of the distinct images, and the image of each row.

    Args:
        dataset: with `image_embeds`, the vectors of images; or else with a column of images, which go through the
            model's image tower, or through the encoder that its configuration names.
        source: the dataset's name for messages; if it is a folder with a card, the card says the vectors' encoder.
        encoder: replaces the encoder named in the model's configuration.
        transfer: the `ModalityTransfer` of the training data; its `condition_image` is applied to the vectors.

    Returns:
        float32 `[num_images, embed_dim]`, int64 `[len(dataset)]`.

    Raises:
        InputError: neither column is there; vectors of another encoder or dimension, or without a direction; an image
            is missing or cannot be read.
    """
    if "image_embeds" in dataset.column_names:
        rows = _stored_vectors(dataset, source, model.config, encoder or model.config.image_encoder)
        first, image_of = _distinct(row.tobytes() for row in rows)
        vectors = rows[first]
        return (transfer.condition_image(vectors) if transfer is not None else vectors), image_of
    column = image_column(dataset)
    if column is None:
        raise InputError(
            f"{source}: has no images and no vectors of images; expected a column 'image', or 'image_embeds' as "
            f"`unicorn-hf embed` writes it; its columns are {', '.join(dataset.column_names)}"
        )
    files = undecoded(dataset, column)
    first, image_of = _distinct(_content(files[row], row, source) for row in range(len(files)))
    encoder = find_image_encoder(model, encoder)
    blocks = []
    for start in progress_bar(range(0, len(first), _AT_A_TIME), desc="encoding images", unit="batch"):
        images = [_open(files[row], row, source) for row in first[start : start + _AT_A_TIME]]
        blocks.append(encode_images(model, processor, images, encoder=encoder, transfer=transfer))
    return np.concatenate(blocks), image_of


def image_column(dataset) -> str | None:
    """The column `image`, or else the first column of images."""
    import datasets

    images = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
    return "image" if "image" in dataset.column_names else next(iter(images), None)


def undecoded(dataset, column: str):
    """The cells of the column, not decoded: each `{"bytes": …, "path": …}` or None."""
    import datasets

    return dataset.select_columns([column]).cast_column(column, datasets.Image(decode=False))[column]


def _stored_vectors(dataset, source, config, encoder: str | None) -> np.ndarray:
    made_by = Origin.of_column(read_provenance(source), "image_embeds")
    if differ := made_by.difference(Origin(encoder)):
        raise InputError(
            f"{source}: image_embeds are vectors of {differ[0]}, but the model reads those of {differ[1]}; embed the "
            "images with that encoder"
        )
    stored = TableVectors(DatasetTables(dataset, str(source)), "image_embeds", {})
    if stored.embed_dim != config.embed_dim:
        raise InputError(
            f"{source}: image_embeds holds vectors of {stored.embed_dim} dimensions; the model reads vectors of "
            f"{config.embed_dim} dimensions of the encoder {encoder!r}"
        )
    rows = np.concatenate(list(stored.blocks()))
    if len(bad := find_unusable(rows, for_float16=True)):
        raise InputError(
            f"{source}: {stored.row_name(int(bad[0]))}: image_embeds holds {what_is_wrong(rows[bad[0]])} "
            f"({len(bad):,} of {len(rows):,} rows cannot be used); embed these images again, or leave the rows out"
        )
    return rows.astype(np.float32)


def _distinct(contents: Iterable[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """The first row of each distinct content, and for each row the index of its content among them."""
    places = {}
    place_of = np.array([places.setdefault(xxhash.xxh3_128_digest(content), len(places)) for content in contents])
    return np.unique(place_of, return_index=True)[1], place_of


def _content(cell: dict | None, row: int, source) -> bytes:
    if cell is None or (cell["bytes"] is None and cell["path"] is None):
        raise InputError(f"{source}: row {row} has no image; leave such rows out")
    if cell["bytes"] is None:
        return str(Path(cell["path"])).encode()
    return cell["bytes"]


def _open(cell: dict, row: int, source):
    try:
        return read_image(cell)
    except InputError as error:
        raise InputError(f"{source}: row {row}: {error}") from error
