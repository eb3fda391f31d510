"""The images of each row, told from its content: a vector or several in any of the list types, or pictures."""

import numpy as np

# Where a sample's images may be: vectors, or pictures for the model's own tower. The first that is there is taken.
IMAGE_COLUMNS = ("image_embeds", "images", "image")
_LISTS = (list, np.ndarray)  # as which `datasets` gives a row's vectors


def image_column(dataset) -> str | None:
    """The column that holds the images of `dataset`; vectors go before the pictures that they were made of."""
    return next((column for column in IMAGE_COLUMNS if column in dataset.column_names), None)


def count_images(values, column: str, embed_dim: int | None) -> tuple[np.ndarray, tuple[int, str] | None]:
    """How many images each row has, and what is wrong with the first row whose images cannot be used.

    A row's vectors are a list of numbers (one vector) or a list of such lists (several); a null or an empty list is
    none. Nothing is decoded or copied.

    Args:
        values: a column as Arrow holds it, array or chunked array.
        column: its name, one of `IMAGE_COLUMNS`.
        embed_dim: how many numbers each vector has; `None`: as many as the first.

    Returns:
        int64 `[rows]`, and (row, what is wrong with it) or `None`.
    """
    values = _plain(values)
    if column != "image_embeds":
        return _count_pictures(values)
    rows, vectors = split_vectors(values)
    wrong = [found for found in (_wrong_type(values), _wrong_vector(rows, vectors, embed_dim)) if found is not None]
    return np.bincount(rows, minlength=len(values)), min(wrong, default=None)


def vectors_dim(dataset) -> int | None:
    """How many numbers the vectors of `dataset` (its column `image_embeds`) have; `None` where no row has a vector."""
    from datasets import Dataset

    dataset = dataset.select_columns(["image_embeds"])
    if not isinstance(dataset, Dataset):
        values = (row["image_embeds"] for row in dataset)
        first = next((value for value in values if isinstance(value, _LISTS) and len(value)), None)
        if first is None:
            return None
        return len(first[0] if isinstance(first[0], _LISTS) else first)
    for table in dataset.with_format("arrow").iter(4096):
        _, vectors = split_vectors(table.column(0))
        if len(vectors):
            return int(list_lengths(vectors)[0])
    return None


def is_nested(feature) -> bool:
    """Whether a feature of `datasets` is one of several vectors a row: a list of lists, or a two-dimensional array."""
    from datasets import Array2D, LargeList, List

    lists = List | LargeList
    return isinstance(feature, Array2D) or (isinstance(feature, lists) and isinstance(feature.feature, lists))


def split_vectors(values):
    """A column of vectors as (the row of each vector, the vectors, an Arrow array of lists)."""
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
    """How long each list of an Arrow array is, int64; a null is 0."""
    import pyarrow.compute as pc

    return pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False).astype(np.int64)


def _plain(values):
    """One Arrow array of plain lists, of a column that may be in chunks or in an array type of `datasets`."""
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
    """The first row that has a value of a type in which there are no vectors."""
    import pyarrow as pa

    leaf = values.type
    for _ in range(2):
        leaf = leaf.value_type if _is_list(leaf) else leaf
    is_number = pa.types.is_floating(leaf) or pa.types.is_integer(leaf) or pa.types.is_null(leaf)
    if is_number and (_is_list(values.type) or pa.types.is_null(values.type)):
        return None
    rows = np.flatnonzero(values.is_valid().to_numpy(zero_copy_only=False))
    return (
        (int(rows[0]), f"is of the type {values.type}; expected a vector or a list of vectors") if len(rows) else None
    )


def _wrong_vector(rows, vectors, embed_dim: int | None) -> tuple[int, str] | None:
    """The first row with a vector that is null, of another length, or not of finite numbers."""
    import pyarrow as pa

    if len(vectors) == 0:
        return None
    found = []
    lengths = list_lengths(vectors)
    expected = embed_dim or int(lengths[0])
    if len(others := np.flatnonzero(lengths != expected)):
        is_null = not vectors[int(others[0])].is_valid
        what = "a null among its vectors" if is_null else f"a vector of {lengths[others[0]]} numbers"
        found.append((int(rows[others[0]]), f"has {what}; expected vectors of {expected} numbers"))
    numbers = vectors.flatten()
    if numbers.null_count:
        at = np.flatnonzero(numbers.is_null().to_numpy(zero_copy_only=False))[0]
        found.append((_row_of(at, rows, lengths), "has a null among the numbers of a vector"))
    if pa.types.is_floating(numbers.type) and not _all_finite(array := numbers.to_numpy(zero_copy_only=False)):
        not_finite = ~np.isfinite(array)
        if numbers.null_count:  # a null is a NaN here, and has been found
            not_finite &= numbers.is_valid().to_numpy(zero_copy_only=False)
        if not_finite.any():
            found.append((_row_of(np.flatnonzero(not_finite)[0], rows, lengths), "holds NaN or infinite values"))
    return min(found, default=None)


def _row_of(position: int, rows, lengths) -> int:
    return int(rows[np.searchsorted(np.cumsum(lengths), position, side="right")])


def _all_finite(numbers: np.ndarray) -> bool:
    if numbers.dtype != np.float16:
        return bool(np.isfinite(numbers).all())
    # Seven times as fast as `isfinite`, and there are gigabytes: the exponent of what is not finite is all ones.
    return bool((numbers.view(np.uint16) & 0x7FFF).max(initial=0) < 0x7C00)
