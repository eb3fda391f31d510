"""Look up vectors on disk by id or by row. (The released loaders scan a list, or hold all vectors in memory.)

The index is a sorted array of hashes, 16 to 20 bytes per row. The vectors stay on disk, so opening reads only the ids,
and processes share the pages.
"""

import json
import os
import pickle
import tempfile
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain, islice
from pathlib import Path

import numpy as np
from xxhash import xxh3_64_intdigest

from unicorn_hf.data.usable_vectors import find_unusable, what_is_wrong
from unicorn_hf.data.vector_sets import parallel_map, read_into, safetensors_header
from unicorn_hf.errors import InputError

# The last entry of the index, larger than any hash.
_END = np.uint64(1 << 63)


class EmbeddingLookup:
    """The vectors of a `datasets.Dataset` or of a file, by id or row.

    `lookup["0010278167"]` is one vector [D], `lookup[["7", "12"]]` are several [n, D]; `lookup.row(3)` and
    `lookup.rows([3, 5])` do the same by row. Ids are compared as strings. A single vector may be a read-only view.

    If pickles have an id several times, its last vector counts, as in the released code. `unusable` maps ids without a
    usable vector to the reason.

    Raises:
        KeyError: an id does not exist.
        InputError: the source cannot be read, or has an id twice.
    """

    def __init__(
        self,
        ids: Iterable,
        vectors: "DatasetColumn | RowFile",
        name: str,
        *,
        skip_non_finite: bool = False,
        keep_last: bool = False,
        unusable: dict[str, str] | None = None,
        wrong: dict[int, str] | None = None,
    ):
        self.name = name
        self.vectors = vectors
        self.unusable = unusable or {}
        wrong = dict(find_wrong_rows(vectors.blocks())) if wrong is None else wrong
        if wrong:
            ids = named = list(ids)
            row, what = next(iter(wrong.items()))
            if not skip_non_finite:
                raise InputError(
                    f"{name}: row {row} (id {named[row]!r}) holds {what}; expected a finite vector that is not zero; "
                    "correct it, or leave such rows out with skip_non_finite (--skip-non-finite)"
                )
        hashes = np.fromiter(map(_hash, ids), np.uint64, len(vectors))
        order = np.argsort(hashes, kind="stable")
        hashes = hashes[order]
        if keep_last:
            last = np.append(hashes[1:] != hashes[:-1], True)
            hashes, order = hashes[last], order[last]
        if wrong:
            usable = ~np.isin(order, list(wrong))
            for row in order[~usable].tolist():
                self.unusable[str(named[row])] = reason_of(wrong[row])
            hashes, order = hashes[usable], order[usable]
        twice = np.flatnonzero(hashes[1:] == hashes[:-1])
        if len(twice):
            first, second = sorted(order[twice[0] : twice[0] + 2].tolist())
            raise InputError(f"{name}: rows {first} and {second} have the same id; expected each id once")
        # Hashes are spread evenly, so with as many buckets as rows a bucket holds about one of them.
        bits = max(1, len(hashes).bit_length() - 1)
        self._shift = 63 - bits
        bounds = np.arange(1 << bits, dtype=np.uint64) << np.uint64(self._shift)
        starts = hashes.searchsorted(bounds).astype(np.uint32)
        self._index = (np.append(hashes, _END), np.append(order, 0).astype(np.uint32), starts)
        self._view_index()

    def _view_index(self) -> None:
        # Reading one element of a memoryview is several times faster than reading one of an array.
        self._hashes, self._rows, self._starts = (array.data for array in self._index)

    @classmethod
    def from_dataset(cls, dataset, column: str = "image_embeds", *, skip_non_finite: bool = False) -> "EmbeddingLookup":
        """Look up a column of fixed-length lists in a `datasets.Dataset`; see `open` for `skip_non_finite`."""
        ids = _own_mapping(dataset.select_columns("id")).with_format("arrow")
        rows = DatasetColumn(dataset, column)
        return cls(_column_values(ids, "id"), rows, f"the dataset's {column}", skip_non_finite=skip_non_finite)

    @classmethod
    def open(
        cls,
        source,
        column: str = "image_embeds",
        *,
        skip_non_finite: bool = False,
        scratch=None,
        allow_pickle: bool = False,
    ) -> "EmbeddingLookup":
        """Look up the vectors of a file or folder.

        Args:
            source: a `.npy` file, or a `.safetensors` file of one matrix, with the ids beside it (`NAME.ids.txt`, one
                per line, or `NAME.ids.json`); a `.safetensors` file with one vector per id; a dataset or dataset
                folder; or, with `allow_pickle`, a released `.pkl` file or a folder of them.
            column: the column of a dataset.
            skip_non_finite: leave out vectors that are NaN, Inf or zero; `unusable` has their ids and the reasons.
            scratch: a folder for a temporary file, for sources that can't be read row by row (Parquet, pickles).
        """
        from unicorn_hf.data.pickles import usable_blocks
        from unicorn_hf.data.vector_sets import FileVectors, TableVectors
        from unicorn_hf.data.vectors import open_vectors

        path = Path(source) if isinstance(source, str | Path) else None
        if path is not None and path.suffix == ".safetensors" and path.is_file():
            by_id = _safetensors_by_id(path)
            if by_id is not None:
                return cls(*by_id, str(source), skip_non_finite=skip_non_finite)
        if path is not None and (path.suffix in (".pkl", ".pickle") or any(path.glob("*.pkl"))):
            unusable: dict[str, str] = {}
            blocks = usable_blocks(path, unusable, allow_pickle=allow_pickle)
            first = next(blocks)
            ids, rows, wrong = spill(chain([first], blocks), scratch, first[1].shape[1])
            return cls(
                ids,
                rows,
                str(source),
                skip_non_finite=skip_non_finite,
                keep_last=True,
                unusable=unusable,
                wrong=wrong,
            )
        vectors = open_vectors(source, column, allow_pickle=allow_pickle)
        own_ids = read_ids(vectors.path, vectors.num_rows) if isinstance(vectors, FileVectors) else vectors.ids()
        if own_ids is None:
            raise InputError(f"{vectors.name}: has no column 'id'; expected one, to look up the vectors")
        if places := isinstance(vectors, FileVectors | TableVectors) and vectors.places():
            rows = RowFile(places, vectors.dtype, vectors.embed_dim)
            return cls(own_ids, rows, vectors.name, skip_non_finite=skip_non_finite)
        listed = iter(own_ids)
        pairs = ((list(islice(listed, len(block))), block) for block in vectors.blocks())
        ids, rows, wrong = spill(pairs, scratch, vectors.embed_dim)
        return cls(ids, rows, vectors.name, skip_non_finite=skip_non_finite, wrong=wrong)

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def embed_dim(self) -> int:
        return self.vectors.embed_dim

    def __contains__(self, key) -> bool:
        return self._find(key) >= 0

    def __getitem__(self, key) -> np.ndarray:
        if type(key) is str or not isinstance(key, list | tuple | np.ndarray):
            row = self._find(key)
            if row < 0:
                raise KeyError(f"{self.name}: has no id {key!r}")
            return self.vectors.row(row)
        rows = list(map(self._find, key))
        if -1 in rows:
            raise KeyError(f"{self.name}: has no id {key[rows.index(-1)]!r}")
        return self.vectors.rows(rows)

    def row(self, row: int) -> np.ndarray:
        return self.vectors.row(row)

    def rows(self, rows: Sequence[int]) -> np.ndarray:
        return self.vectors.rows(rows)

    def find(self, ids: Sequence) -> np.ndarray:
        """The row of each id, int64 [n]; -1 for an unknown id."""
        return np.fromiter(map(self._find, ids), np.int64, len(ids))

    def _find(self, key) -> int:
        hash_ = _hash(key)
        hashes, place = self._hashes, self._starts[hash_ >> self._shift]
        while (found := hashes[place]) < hash_:
            place += 1
        return self._rows[place] if found == hash_ else -1

    def __getstate__(self):
        state = self.__dict__.copy()
        for view in ("_hashes", "_rows", "_starts"):
            del state[view]
        return state

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._view_index()


def find_wrong_rows(blocks: Iterable[np.ndarray], first_row: int = 0) -> Iterator[tuple[int, str]]:
    """The rows that are NaN, Inf or zero, or that float16 cannot represent, and what they hold."""

    def of_block(block):
        return len(block), {row: what_is_wrong(block[row]) for row in find_unusable(block, for_float16=True).tolist()}

    for count, wrong in parallel_map(of_block, blocks):
        yield from ((first_row + row, what) for row, what in wrong.items())
        first_row += count


def reason_of(what: str) -> str:
    """The reason for rejecting a record, from the result of `what_is_wrong` for its vector."""
    return {"NaN": "embedding not finite", "Inf": "embedding not finite", "only zeros": "embedding of zeros"}.get(
        what, "embedding beyond float16"
    )


class DatasetColumn:
    """A column of fixed-length lists of a `datasets.Dataset`, read directly from its Arrow table.

    The formatting of `datasets` takes forty times as long as the look-up itself.
    """

    def __init__(self, dataset, column: str):
        import pyarrow as pa

        kind = dataset.features.arrow_schema.field(column).type
        if not pa.types.is_fixed_size_list(kind):
            raise InputError(f"the dataset's {column!r} holds {kind}; expected lists of one length")
        self.embed_dim = kind.list_size
        # `dataset[:]` below applies the dataset's selection and order of rows: a view, or a copy if rows were picked.
        self.dataset, self.column = dataset.select_columns(column).with_format("arrow"), column
        self._open()

    def _open(self) -> None:
        self._blocks = [
            chunk.flatten().to_numpy().reshape(-1, self.embed_dim)
            for chunk in self.dataset[:].column(self.column).chunks
            if len(chunk)
        ]
        if sum(map(len, self._blocks)) != len(self.dataset):
            raise InputError(f"the dataset's {self.column!r} has missing vectors; expected one in every row")
        self._starts = list(accumulate(map(len, self._blocks[:-1]), initial=0))

    def __len__(self) -> int:
        return len(self.dataset)

    def blocks(self) -> Iterator[np.ndarray]:
        """All rows in order."""
        own = DatasetColumn(_own_mapping(self.dataset), self.column)
        return (block[start : start + 1000] for block in own._blocks for start in range(0, len(block), 1000))

    def row(self, row: int) -> np.ndarray:
        block = bisect_right(self._starts, row) - 1
        return self._blocks[block][row - self._starts[block]]

    def rows(self, rows: Sequence[int]) -> np.ndarray:
        blocks, starts = self._blocks, self._starts
        result = np.empty((len(rows), self.embed_dim), blocks[0].dtype)
        for place, row in enumerate(rows.tolist() if isinstance(rows, np.ndarray) else rows):
            block = bisect_right(starts, row) - 1
            result[place] = blocks[block][row - starts[block]]
        return result

    def __getstate__(self):
        return {"dataset": self.dataset, "column": self.column, "embed_dim": self.embed_dim}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._open()


class RowFile:
    """Rows of vectors in one or more files, read one by one.

    The files are not mapped: mapped pages count as the process's memory, and random rows soon touch all of them.

    Args:
        places: runs of rows: file, byte offset of the first number, number of rows.
    """

    def __init__(self, places: list[tuple[Path, int, int]], dtype, embed_dim: int):
        self._state = (places, np.dtype(dtype), embed_dim)
        self._open()

    def _open(self) -> None:
        places, self._dtype, self.embed_dim = self._state
        self._files = {path: path.open("rb", buffering=0) for path, _, _ in places}
        self._runs = [(self._files[path].fileno(), offset) for path, offset, _ in places]
        *self._starts, self._num_rows = accumulate((count for _, _, count in places), initial=0)
        self._row_bytes = self._dtype.itemsize * self.embed_dim

    def __len__(self) -> int:
        return self._num_rows

    def blocks(self) -> Iterator[np.ndarray]:
        """All rows in order."""
        for path, offset, num_rows in self._state[0]:
            for start in range(0, num_rows, 1000):
                block = np.empty((min(1000, num_rows - start), self.embed_dim), self._dtype)
                read_into(block, self._files[path].fileno(), offset + start * self._row_bytes, path)
                yield block

    def row(self, row: int) -> np.ndarray:
        return self.rows([row])[0]

    def rows(self, rows: Sequence[int]) -> np.ndarray:
        result = np.empty((len(rows), self.embed_dim), self._dtype)
        view = result.data.cast("B")
        runs, starts, size = self._runs, self._starts, self._row_bytes
        for place, row in enumerate(rows.tolist() if isinstance(rows, np.ndarray) else rows):
            run = bisect_right(starts, row) - 1
            file, offset = runs[run]
            if os.preadv(file, [view[place * size : (place + 1) * size]], offset + (row - starts[run]) * size) != size:
                raise InputError(f"{self._state[0][run][0]}: was cut short while it was read")
        return result

    def __getstate__(self):
        return {"_state": self._state}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._open()


def spill(
    pairs: Iterable[tuple[list, np.ndarray]], scratch, embed_dim: int
) -> tuple[list[str], RowFile, dict[int, str]]:
    """Write pairs of ids and block [n, D] as float16 to one flat file in `scratch`, to read it row by row.

    Returns the ids, the rows, and row -> problem for the unusable rows.
    """
    ids: list[str] = []
    wrong: dict[int, str] = {}
    with tempfile.NamedTemporaryFile(dir=scratch, prefix="vectors-", suffix=".f16", delete=scratch is None) as file:
        for names, block in pairs:
            wrong.update(find_wrong_rows([block], len(ids)))
            ids += names
            with np.errstate(over="ignore"):
                file.write(np.ascontiguousarray(block, np.float16).data.cast("B"))
        file.flush()
        return ids, RowFile([(Path(file.name), 0, len(ids))], np.float16, embed_dim), wrong


def read_ids(path: Path, num_rows: int) -> list[str]:
    """The ids of a matrix's rows, from the file beside it.

    Raises:
        InputError: there is no such file, or it does not hold one id per row.
    """
    text, listed = path.with_suffix(".ids.txt"), path.with_suffix(".ids.json")
    if text.is_file():
        ids = text.read_text(encoding="utf-8").splitlines()
    elif listed.is_file():
        ids = [str(key) for key in json.loads(listed.read_text(encoding="utf-8"))]
    else:
        raise InputError(
            f"{path}: holds rows without ids; expected {text.name} (one id per line) or {listed.name} beside it"
        )
    if len(ids) != num_rows:
        raise InputError(f"{path}: has {num_rows:,} rows, but {len(ids):,} ids beside it; expected one id per row")
    return ids


def _safetensors_by_id(path: Path) -> tuple[list[str], RowFile] | None:
    """The ids and rows of a `.safetensors` file with one vector per id; None if it holds a matrix."""
    tensors = safetensors_header(path)
    if not tensors or any(len(shape) != 1 for _, shape, _ in tensors.values()):
        return None
    kinds = {(kind, shape[0]) for kind, shape, _ in tensors.values()}
    if len(kinds) != 1 or next(iter(kinds))[0] not in ("F16", "F32"):
        raise InputError(f"{path}: holds vectors of {sorted(kinds)}; expected one type, F16 or F32, and one length")
    ((kind, embed_dim),) = kinds
    first = next(iter(tensors.values()))[2]
    dtype = {"F16": np.float16, "F32": np.float32}[kind]
    return list(tensors), RowFile([(path, first, len(tensors))], dtype, embed_dim)


def _hash(key) -> int:
    # 63 bits, the same in every process. The chance that two of a million ids collide is 5 in 10^8.
    return xxh3_64_intdigest((key if type(key) is str else str(key)).encode()) >> 1


def _own_mapping(dataset):
    """A copy of a dataset with its own mapping of the files, so that the pages it reads are released with it."""
    return pickle.loads(pickle.dumps(dataset)) if dataset.cache_files else dataset


def _column_values(dataset, column: str) -> Iterator:
    for table in dataset.select_columns(column).iter(10_000):
        yield from table.column(column).to_pylist()
