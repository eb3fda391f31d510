"""The images of each row, told from its content: a vector or several in any of the list types, or pictures."""

import numpy as np

from unicorn_hf.data.usable_vectors import find_unusable, what_is_wrong

# The columns that may hold a sample's images: vectors, or images for the model's own tower. The first one counts.
IMAGE_COLUMNS = ("image_embeds", "images", "image")
_LISTS = (list, np.ndarray)  # the types in which `datasets` returns a row's vectors


def image_column(dataset) -> str | None:
    """The column with the images of `dataset`; vectors are preferred to the images they were made from."""
    return next((column for column in IMAGE_COLUMNS if column in dataset.column_names), None)


def count_images(values, column: str, embed_dim: int | None) -> tuple[np.ndarray, tuple[int, str] | None]:
    """The number of images of each row, and the problem of the first row with unusable images.

    A row's vectors are a list of numbers (one vector) or a list of such lists (several vectors); null or an empty list
    means no image. Nothing is decoded or copied.

    Args:
        values: an Arrow array or chunked array.
        column: its name, one of `IMAGE_COLUMNS`.
        embed_dim: the length of the vectors; None takes the length of the first one.

    Returns:
        int64 `[rows]`, and (row, problem) or None.
    """
    values = _plain(values)
    if column != "image_embeds":
        return _count_pictures(values)
    rows, vectors = split_vectors(values)
    wrong = _wrong_vector(rows, vectors, embed_dim) if holds_vectors(values.type) else _wrong_type(values)
    return np.bincount(rows, minlength=len(values)), wrong


def vectors_dim(dataset) -> int | None:
    """The length of the vectors in the column `image_embeds` of `dataset`; None if no row has a vector."""
    from datasets import Dataset

    dataset = dataset.select_columns(["image_embeds"])
    if not isinstance(dataset, Dataset):
        values = (row["image_embeds"] for row in dataset)
        lists = (value for value in values if isinstance(value, _LISTS) and len(value))
        vectors = (vector for each in lists for vector in (each if isinstance(each[0], _LISTS) else [each]))
        return next((len(vector) for vector in vectors if vector is not None and len(vector)), None)
    for table in dataset.with_format("arrow").iter(4096):
        _, vectors = split_vectors(table.column(0))
        lengths = list_lengths(vectors)
        if lengths.any():
            return int(lengths[lengths > 0][0])
    return None


def holds_vectors(type_) -> bool:
    """Whether an Arrow type can hold vectors: a list of numbers, a list of such lists, or only nulls."""
    import pyarrow as pa

    type_ = type_.storage_type if isinstance(type_, pa.ExtensionType) else type_
    leaf = type_
    for _ in range(2):
        leaf = leaf.value_type if _is_list(leaf) else leaf
    is_number = pa.types.is_floating(leaf) or pa.types.is_integer(leaf) or pa.types.is_null(leaf)
    return is_number and (_is_list(type_) or pa.types.is_null(type_))


def is_nested(feature) -> bool:
    """Whether a feature of `datasets` holds several vectors per row: a list of lists, or a two-dimensional array."""
    from datasets import Array2D, LargeList, List

    lists = List | LargeList
    return isinstance(feature, Array2D) or (isinstance(feature, lists) and isinstance(feature.feature, lists))


def split_vectors(values):
    """A column of vectors as (the row of each vector, the vectors as an Arrow array of lists)."""
    import pyarrow as pa

    values = _plain(values)
    if not _is_list(values.type):
        return np.zeros(0, np.int64), pa.array([], pa.list_(pa.float32()))
    lengths = list_lengths(values)
    if _is_list(values.type.value_type):
        return np.repeat(np.arange(len(values)), lengths), values.flatten()
    rows = np.flatnonzero(lengths)
    return rows, values if len(rows) == len(values) else values.take(pa.array(rows))


def list_lengths(values) -> np.ndarray:
    """The length of each list of an Arrow array, int64; 0 for null."""
    import pyarrow.compute as pc

    return pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False).astype(np.int64)


def _plain(values):
    """A column, which may be chunked or of an array type of `datasets`, as one Arrow array of plain lists."""
    import pyarrow as pa

    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    return values.storage if isinstance(values, pa.ExtensionArray) else values


def _is_list(type_) -> bool:
    import pyarrow as pa

    return pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)


def _count_pictures(values) -> tuple[np.ndarray, tuple[int, str] | None]:
    valid = values.is_valid().to_numpy(zero_copy_only=False)
    if not _is_list(values.type):
        return valid.astype(np.int64), None
    counts, pictures = list_lengths(values), values.flatten()
    if not pictures.null_count:
        return counts, None
    rows = np.repeat(np.arange(len(values)), counts)
    return counts, (int(rows[pictures.is_null().to_numpy(zero_copy_only=False)][0]), "has a null among its pictures")


def _wrong_type(values) -> tuple[int, str] | None:
    """The problem of a column whose type cannot hold vectors: its first row with a value."""
    rows = np.flatnonzero(values.is_valid().to_numpy(zero_copy_only=False))
    return (
        (int(rows[0]), f"is of the type {values.type}; expected a vector or a list of vectors") if len(rows) else None
    )


def _wrong_vector(rows, vectors, embed_dim: int | None) -> tuple[int, str] | None:
    """The first row with a vector that is null, has another length, or is unusable (`data/usable_vectors.py`)."""
    import pyarrow as pa

    lengths = list_lengths(vectors)
    expected = embed_dim or next((int(length) for length in lengths if length), 1)
    found = []
    is_right = lengths == expected
    if not is_right.all():
        other = int(np.argmin(is_right))
        what = f"a vector of {lengths[other]} numbers" if vectors[other].is_valid else "a null among its vectors"
        found.append((int(rows[other]), f"has {what}; expected vectors of {expected} numbers"))
        rows, vectors = rows[is_right], vectors.filter(pa.array(is_right))
    if len(rows):
        block = vectors.flatten().to_numpy(zero_copy_only=False).reshape(-1, expected)  # a null is a NaN
        if len(unusable := find_unusable(block, for_float16=True)):
            first = int(unusable[0])
            has_null = vectors[first].values.null_count
            what = "has a null among the numbers of a vector" if has_null else f"holds {what_is_wrong(block[first])}"
            found.append((int(rows[first]), what))
    return min(found, default=None)
