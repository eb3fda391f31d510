"""Sets of vectors in memory, in files and in tables, read in blocks of rows; `open_vectors` chooses the class.

`unit_rows` turns a block of any dtype into rows of unit length and finds the rows without a direction.
"""

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, chain
from pathlib import Path

import numpy as np

from unicorn_hf.data.unit_rows import UnitRows
from unicorn_hf.errors import InputError

BLOCK_ROWS = 512  # 512 x 1280 float32 is 2.6 MB, which stays in a core's cache
TABLE_ROWS = 1000  # rows per table where whole rows are copied to a new dataset
THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
# Safetensors' names of element types; bfloat16 has no NumPy type and is widened to float32 while it is read.
_SAFETENSORS_TYPES = {"F16": np.float16, "F32": np.float32, "F64": np.float64, "BF16": np.uint16}
# Parquet row groups up to this size are decoded whole, one per thread.
_PIECE_BYTES = 64 << 20


class Vectors:
    """N vectors of D numbers, read in order. `provenance` is what the dataset's card says about its columns."""

    name: str
    num_rows: int
    embed_dim: int
    column: str | None = None
    provenance: dict = {}  # noqa: RUF012 (replaced, never changed)

    @property
    def encoder(self) -> str | None:
        """The encoder that made the vectors; None if the source does not say."""
        return self.provenance.get(self.column, {}).get("encoder")

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[np.ndarray]:
        """Arrays [at most `rows`, D] of the stored dtype."""
        raise NotImplementedError

    def map_blocks(self, function: Callable, rows: int = BLOCK_ROWS, threads: int | None = None) -> Iterator:
        """Apply `function` to every block on several threads; the results keep the order."""
        return parallel_map(function, self.blocks(rows), threads)

    def table_schema(self):
        """The `pyarrow.Schema` of `tables`; vectors without other columns get an `id`, the row's number."""
        import pyarrow as pa

        return pa.schema({"id": pa.string()})

    def tables(self) -> Iterator:
        """Pairs of a `pyarrow.Table` of whole rows, at most `TABLE_ROWS`, and the block of their vectors."""
        import pyarrow as pa

        row = 0
        for block in self.blocks(TABLE_ROWS):
            yield pa.table({"id": [str(index) for index in range(row, row + len(block))]}), block
            row += len(block)

    def map_tables(self, function: Callable) -> Iterator:
        """`tables` with `function` applied to every block on several threads; the results keep the order."""
        return parallel_map(lambda pair: (pair[0], function(pair[1])), self.tables())

    def row_id(self, row: int) -> str | None:
        """The row's `id`; None if it has none."""
        return None

    def ids(self) -> list[str] | None:
        """The ids of all rows; None if they have none."""
        return None

    def row_name(self, row: int) -> str:
        identifier = self.row_id(row)
        return f"row {row}" if identifier is None else f"row {row} (id {identifier!r})"

    def _check_shape(self, shape) -> None:
        if len(shape) != 2 or min(shape) < 1:
            raise InputError(f"{self.name}: has the shape {list(shape)}; expected [rows, dimensions], both at least 1")
        self.num_rows, self.embed_dim = shape


class ArrayVectors(Vectors):
    def __init__(self, array: np.ndarray, name: str):
        self.name = name
        if array.dtype.kind not in "fiu":
            raise InputError(f"{name}: holds {array.dtype}; expected numbers")
        self._check_shape(array.shape)
        self.array = array
        self.dtype = array.dtype

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[np.ndarray]:
        for start in range(0, self.num_rows, rows):
            yield self.array[start : start + rows]


class FileVectors(Vectors):
    """The rows of a `.npy` or `.safetensors` file: one array of known offset and dtype, read with plain reads.

    The file is not mapped: mapped pages count as this process's memory, and reading them is no faster.
    """

    def __init__(self, path: Path, shape, dtype, offset: int, column: str | None = None, bfloat16: bool = False):
        self.name = str(path)
        self._check_shape(shape)
        self.path, self.dtype, self.offset, self.column, self.bfloat16 = path, np.dtype(dtype), offset, column, bfloat16
        expected = offset + self.num_rows * self.embed_dim * self.dtype.itemsize
        if path.stat().st_size < expected:
            raise InputError(
                f"{path}: is cut short ({path.stat().st_size:,} bytes; by its header {expected:,}); write it again"
            )

    @classmethod
    def from_npy(cls, path: Path) -> "FileVectors":
        with path.open("rb") as file:
            try:
                version = np.lib.format.read_magic(file)
                read_header = (
                    np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                )
                shape, fortran_order, dtype = read_header(file)
            except Exception as error:  # the header is a Python literal, which can be invalid in many ways
                raise InputError(f"{path}: is not a .npy file ({_reason(error)})") from error
            if fortran_order or dtype.kind not in "fiu":
                order = " by columns" if fortran_order else ""
                raise InputError(f"{path}: holds {dtype}{order}; expected numbers by rows")
            return cls(path, shape, dtype, file.tell())

    @classmethod
    def from_safetensors(cls, path: Path, column: str | None) -> "FileVectors":
        tensors = safetensors_header(path)
        if column not in tensors:
            if len(tensors) != 1:
                raise InputError(f"{path}: has no tensor {column!r}; its tensors are {', '.join(tensors)[:300]}")
            column = next(iter(tensors))
        kind, shape, offset = tensors[column]
        if kind not in _SAFETENSORS_TYPES:
            raise InputError(f"{path}: {column!r} holds {kind}; expected one of {', '.join(_SAFETENSORS_TYPES)}")
        return cls(path, shape, _SAFETENSORS_TYPES[kind], offset, column, bfloat16=kind == "BF16")

    def places(self) -> list[tuple[Path, int, int]] | None:
        """Where the rows lie: file, byte offset, number of rows; None if they are stored in another dtype."""
        return None if self.bfloat16 else [(self.path, self.offset, self.num_rows)]

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[np.ndarray]:
        return self.map_blocks(lambda block: block, rows, threads=1)

    def map_blocks(self, function: Callable, rows: int = BLOCK_ROWS, threads: int | None = None) -> Iterator:
        """As in `Vectors`; a block is read by the thread that works on it, into that core's cache."""
        with self.path.open("rb", buffering=0) as file:
            starts = range(0, self.num_rows, rows)
            yield from parallel_map(lambda start: function(self._read(file.fileno(), start, rows)), starts, threads)

    def _read(self, file: int, start: int, rows: int) -> np.ndarray:
        block = np.empty((min(rows, self.num_rows - start), self.embed_dim), self.dtype)
        read_into(block, file, self.offset + start * block[0].nbytes, self.path)
        return (block.astype(np.uint32) << 16).view(np.float32) if self.bfloat16 else block


def read_into(block: np.ndarray, file: int, offset: int, path: Path) -> None:
    """Fill an array with the bytes of an open file."""
    view = block.data.cast("B")
    while len(view):
        count = os.preadv(file, [view], offset)
        if not count:
            raise InputError(f"{path}: was cut short while it was read")
        view, offset = view[count:], offset + count


def safetensors_header(path: Path) -> dict[str, tuple[str, list[int], int]]:
    """Name -> dtype, shape and byte offset of every tensor of a `.safetensors` file, in the order of the offsets.

    Raises:
        InputError: the file is not a `.safetensors` file, or its header is inconsistent.
    """
    from safetensors import SafetensorError, safe_open

    try:
        # `safe_open` checks every field, but its access to one tensor is slow in files with many tensors.
        with safe_open(path, "numpy"), path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not a .safetensors file ({_reason(error)})") from error
    header.pop("__metadata__", None)
    tensors = {
        name: (tensor["dtype"], tensor["shape"], 8 + length + tensor["data_offsets"][0])
        for name, tensor in header.items()
    }
    return dict(sorted(tensors.items(), key=lambda item: item[1][2]))


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


class TableVectors(Vectors):
    """The vectors in one column of `Tables`.

    Arrow lists of one length are read like a `.npy` file, with plain reads at their offset in the file. Any other
    column is decoded; each piece is decoded by the thread that works on it.
    """

    def __init__(self, source, column: str | None, provenance: dict):
        import pyarrow as pa

        from unicorn_hf.data.tables import is_list

        self.source, self.column, self.provenance = source, column, provenance
        self.name, self.schema, self.num_rows = source.name, source.schema, source.num_rows
        if column not in self.schema.names:
            raise InputError(f"{self.name}: has no column {column!r}; its columns are {', '.join(self.schema.names)}")
        self.kind = self.schema.field(column).type
        numbers = is_list(self.kind) and self.kind.value_type
        if not numbers or not (
            pa.types.is_floating(numbers) or pa.types.is_integer(numbers) or pa.types.is_null(numbers)
        ):
            raise InputError(f"{self.name}: the column {column!r} holds {self.kind}; expected lists of numbers")
        self.embed_dim = (self.kind.list_size if pa.types.is_fixed_size_list(self.kind) else None) or self._length()
        # `to_pandas_dtype` of pyarrow before 22 imports pandas, which takes longer than reading a thousand vectors.
        kind = "u" if pa.types.is_unsigned_integer(numbers) else "i" if pa.types.is_integer(numbers) else "f"
        self.dtype = np.dtype(np.float32 if pa.types.is_null(numbers) else f"{kind}{numbers.bit_width // 8}")

    def _length(self) -> int:
        """The length of the first vector; rows before it may have none."""
        for table in self.source.read_all([self.column]):
            lengths = table.column(self.column).combine_chunks().value_lengths().drop_null().to_numpy()
            if lengths.any():
                return int(lengths[lengths > 0][0])
        raise InputError(f"{self.name}: has no vector in {self.column!r}; expected some")

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[np.ndarray]:
        return self.map_blocks(lambda block: block, rows, threads=1)

    def map_blocks(self, function: Callable, rows: int = BLOCK_ROWS, threads: int | None = None) -> Iterator:
        return self._map(function, lambda piece, first_row: self._blocks(piece, first_row, rows), threads)

    def tables(self) -> Iterator:
        return self._map(lambda pair: pair, self._tables, threads=1)

    def map_tables(self, function: Callable) -> Iterator:
        return self._map(lambda pair: (pair[0], function(pair[1])), self._tables)

    def _map(self, function: Callable, read: Callable, threads: int | None = None) -> Iterator:
        pieces = self.source.pieces
        starts = accumulate((piece.num_rows for piece in pieces), initial=0)
        items = list(zip(pieces, starts, strict=False))
        if max(piece.num_bytes for piece in pieces) > _PIECE_BYTES:
            return parallel_map(function, (each for item in items for each in read(*item)), threads)
        return chain.from_iterable(parallel_map(lambda item: [function(each) for each in read(*item)], items, threads))

    def _blocks(self, piece, first_row: int, rows: int) -> Iterator[np.ndarray]:
        if place := self._find(piece):
            path, offset = place
            with path.open("rb", buffering=0) as file:
                for start in range(0, piece.num_rows, rows):
                    block = np.empty((min(rows, piece.num_rows - start), self.embed_dim), self.dtype)
                    read_into(block, file.fileno(), offset + start * block[0].nbytes, path)
                    yield block
            return
        for table in self.source.read(piece, [self.column]):
            block = self._as_block(table, piece, first_row)
            first_row += len(block)
            yield from (block[start : start + rows] for start in range(0, len(block), rows))

    def _tables(self, piece, first_row: int) -> Iterator:
        import pyarrow as pa

        from unicorn_hf.data.shards import as_lists

        if not self._find(piece):
            for table in self.source.read(piece):
                yield table, self._as_block(table, piece, first_row)
                first_row += len(table)
            return
        # The vectors are read into new memory, since the pages of a mapped file would stay in this process's memory.
        (block,) = self._blocks(piece, first_row, piece.num_rows)
        others = [name for name in self.schema.names if name != self.column]
        columns = next(iter(self.source.read(piece, others))).columns if others else []
        columns.insert(self.schema.names.index(self.column), as_lists(block, self.kind))
        yield pa.table(columns, schema=self.schema), block

    def places(self) -> list[tuple[Path, int, int]] | None:
        """Where the rows lie, as in `FileVectors`; None if some of them have to be decoded."""
        places = [(*place, piece.num_rows) for piece in self.source.pieces if (place := self._find(piece))]
        return places if len(places) == len(self.source.pieces) else None

    def _find(self, piece) -> tuple[Path, int] | None:
        find = getattr(self.source, "find", None)
        return find(piece, self.column) if find else None

    def _as_block(self, table, piece, first_row: int) -> np.ndarray:
        """The vectors of a table as an array [n, D]: NaN for a missing vector, no copy if none is missing."""
        lists = table.column(self.column).combine_chunks()
        lengths = lists.value_lengths().to_numpy(zero_copy_only=False)  # NaN for a missing list
        wrong = np.flatnonzero((lengths != self.embed_dim) & (lengths == lengths))
        if len(wrong):
            raise InputError(
                f"{self.source.where(piece)}: {self.row_name(first_row + int(wrong[0]))} has {int(lengths[wrong[0]])} "
                f"dimensions in {self.column!r}; expected {self.embed_dim} as in the rows before it"
            )
        values = lists.flatten()
        values = values.to_numpy(zero_copy_only=values.null_count == 0).reshape(-1, self.embed_dim)
        if not lists.null_count:
            return values
        block = np.full((len(lists), self.embed_dim), np.nan, np.float32)
        block[lists.is_valid().to_numpy(zero_copy_only=False)] = values
        return block

    def table_schema(self):
        return self.schema

    def row_id(self, row: int) -> str | None:
        return self.source.row_id(row)

    def ids(self) -> list[str] | None:
        return self.source.ids()


def unit_rows(block: np.ndarray, dtype=np.float32) -> tuple[np.ndarray, np.ndarray]:
    """A copy of `block` [n, D] with rows of unit length, and the indices of unusable rows (NaN, Inf, zero)."""
    rows, bad = UnitRows.of_block(block, dtype)
    return rows.dense(), bad


def parallel_map(function: Callable, items: Iterable, threads: int | None = None) -> Iterator:
    """`map(function, items)` on several threads; the results keep the order, and few of them wait in memory.

    NumPy and pyarrow release the interpreter lock, so threads are enough.
    """
    threads = THREADS if threads is None else threads
    if threads <= 1:
        yield from map(function, items)
        return
    # glibc returns freed memory to the system and fetches it again page by page, unless it has freed a larger array.
    # Without this line, a transfer of 1280-d vectors would spend a tenth of its time on that.
    np.empty(16 << 20, np.uint8)
    with ThreadPoolExecutor(threads) as pool:
        pending: deque = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > 2 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
