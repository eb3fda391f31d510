"""Sets of vectors, wherever they are kept, read in blocks of rows so that memory does not grow with their number.

`open_vectors` takes an array, a tensor, a dataset, or the path of one of the files that hold vectors, and returns a
`Vectors`. `unit_rows` turns a block of any type into rows of unit length and finds those that have no direction.
"""

import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from unicorn_hf.data.data_files import find_data_files
from unicorn_hf.data.provenance import read_provenance
from unicorn_hf.data.sources import read_dataset
from unicorn_hf.data.unit_rows import UnitRows
from unicorn_hf.errors import InputError

BLOCK_ROWS = 512  # 512 x 1280 float32 is 2.6 MB: what a core works on stays near it
TABLE_ROWS = 1000  # whole rows at once, where a table is written again: a row group of Parquet
THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
# Safetensors' names of element types; bfloat16 has no NumPy type and is widened to float32 while it is read.
_SAFETENSORS_TYPES = {"F16": np.float16, "F32": np.float32, "F64": np.float64, "BF16": np.uint16}
# A row group of Parquet up to this size is decoded in one go, several at a time on as many threads.
_ROW_GROUP_BYTES = 64 << 20


def open_vectors(source, column: str | None = None, *, allow_pickle: bool = False) -> "Vectors":
    """The vectors of `source`, without reading them yet.

    Args:
        source: an array or tensor [N, D], a `datasets.Dataset`, a dataset folder or Hub id, a data file (Parquet, JSON
            lines), a `.npy` or `.safetensors` file, or, with `allow_pickle`, a `.pkl` file of the released code or a
            folder of such. A `Vectors` is returned as it is.
        column: the column of a dataset, the tensor of a `.safetensors` file.

    Raises:
        InputError: the source cannot be read, or has no such column, or it holds no vectors.
    """
    if isinstance(source, Vectors):
        return source
    if is_tensor(source):
        source = source.detach().cpu()
        return ArrayVectors((source.float() if str(source.dtype) == "torch.bfloat16" else source).numpy(), "the tensor")
    if isinstance(source, np.ndarray | list):
        return ArrayVectors(np.asarray(source), "the array")
    if isinstance(source, str | Path):
        path = Path(source)
        if path.is_file() and path.suffix == ".npy":
            return FileVectors.from_npy(path)
        if path.is_file() and path.suffix == ".safetensors":
            return FileVectors.from_safetensors(path, column)
        path = path.expanduser()
        if path.suffix in (".pkl", ".pickle") or (path.is_dir() and any(path.glob("*.pkl"))):
            from unicorn_hf.data.pickles import PickleVectors

            return PickleVectors(path, allow_pickle=allow_pickle)
        files = parquet_files(path)
        if files:
            return ParquetVectors(files, column, name=str(source), provenance=read_provenance(source))
    return DatasetVectors(
        read_dataset(source),
        column,
        name=str(source) if isinstance(source, str | Path) else "the dataset",
        provenance=read_provenance(source),
    )


def is_tensor(value) -> bool:
    """Whether `value` is a `torch.Tensor`, without importing torch where nobody else has."""
    return "torch" in sys.modules and isinstance(value, sys.modules["torch"].Tensor)


class Vectors:
    """N vectors of D numbers, read in order. `provenance` is what the dataset's card says of its columns."""

    name: str
    num_rows: int
    embed_dim: int
    column: str | None = None
    provenance: dict = {}  # noqa: RUF012 (replaced, never changed)

    @property
    def encoder(self) -> str | None:
        """The encoder that made the vectors, where the source says which."""
        return self.provenance.get(self.column, {}).get("encoder")

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[np.ndarray]:
        """Arrays [at most `rows`, D] of the type that is stored."""
        raise NotImplementedError

    def map_blocks(self, function: Callable, rows: int = BLOCK_ROWS, threads: int | None = None) -> Iterator:
        """`function` of every block, in order, on several threads."""
        return parallel_map(function, self.blocks(rows), threads)

    def row_id(self, row: int) -> str | None:
        """The row's `id`, where it has one."""
        return None

    def ids(self) -> list[str] | None:
        """All rows' ids, where they have any."""
        return None

    def row_name(self, row: int) -> str:
        identifier = self.row_id(row)
        return f"row {row}" if identifier is None else f"row {row} (id {identifier!r})"

    def _check_shape(self, shape) -> None:
        if len(shape) != 2 or 0 in shape:
            raise InputError(f"{self.name}: has the shape {list(shape)}; expected [rows, dimensions], neither being 0")
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
    """The rows of a `.npy` or `.safetensors` file: one array of known place and type, read with plain reads.

    Not mapped into memory: mapped pages count as this process's memory, and touching them is no faster.
    """

    def __init__(self, path: Path, shape, dtype, offset: int, column: str | None = None, bfloat16: bool = False):
        self.name = str(path)
        self._check_shape(shape)
        self.path, self.dtype, self.offset, self.column, self.bfloat16 = path, np.dtype(dtype), offset, column, bfloat16
        expected = offset + self.num_rows * self.embed_dim * self.dtype.itemsize
        if path.stat().st_size < expected:
            raise InputError(
                f"{path}: is cut short ({path.stat().st_size:,} bytes; its header promises {expected:,}); write it anew"
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
            except ValueError as error:
                raise InputError(f"{path}: is no .npy file ({error})") from error
            if fortran_order or dtype.kind not in "fiu":
                order = " by columns" if fortran_order else ""
                raise InputError(f"{path}: holds {dtype}{order}; expected numbers by rows")
            return cls(path, shape, dtype, file.tell())

    @classmethod
    def from_safetensors(cls, path: Path, column: str | None) -> "FileVectors":
        with path.open("rb") as file:
            try:
                length = int.from_bytes(file.read(8), "little")
                tensors = json.loads(file.read(min(length, path.stat().st_size)))
            except ValueError as error:
                raise InputError(f"{path}: is no .safetensors file") from error
        tensors.pop("__metadata__", None)
        if column not in tensors:
            if len(tensors) != 1:
                raise InputError(f"{path}: has no tensor {column!r}; its tensors are {', '.join(tensors)}")
            column = next(iter(tensors))
        tensor = tensors[column]
        if tensor["dtype"] not in _SAFETENSORS_TYPES:
            expected = ", ".join(_SAFETENSORS_TYPES)
            raise InputError(f"{path}: {column!r} holds {tensor['dtype']}; expected one of {expected}")
        return cls(
            path,
            tensor["shape"],
            _SAFETENSORS_TYPES[tensor["dtype"]],
            8 + length + tensor["data_offsets"][0],
            column,
            bfloat16=tensor["dtype"] == "BF16",
        )

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[np.ndarray]:
        return self.map_blocks(lambda block: block, rows, threads=1)

    def map_blocks(self, function: Callable, rows: int = BLOCK_ROWS, threads: int | None = None) -> Iterator:
        """A block is read by the thread that works on it, into that core's cache."""
        with self.path.open("rb", buffering=0) as file:
            starts = range(0, self.num_rows, rows)
            yield from parallel_map(lambda start: function(self._read(file.fileno(), start, rows)), starts, threads)

    def _read(self, file: int, start: int, rows: int) -> np.ndarray:
        block = np.empty((min(rows, self.num_rows - start), self.embed_dim), self.dtype)
        view, offset = memoryview(block).cast("B"), self.offset + start * block[0].nbytes
        while len(view):
            count = os.preadv(file, [view], offset)
            if not count:
                raise InputError(f"{self.path}: was cut short while it was read")
            view, offset = view[count:], offset + count
        return (block.astype(np.uint32) << 16).view(np.float32) if self.bfloat16 else block


class TableVectors(Vectors):
    """A column of vectors of a table that has other columns too."""

    schema = None  # pyarrow.Schema with the features' metadata

    def tables(self) -> Iterator:
        """Pairs of a `pyarrow.Table` of whole rows, of bounded size, and the block of their vectors."""
        raise NotImplementedError

    def _open_column(self, column: str | None) -> None:
        import pyarrow as pa

        self.column = column
        if column not in self.schema.names:
            raise InputError(f"{self.name}: has no column {column!r}; its columns are {', '.join(self.schema.names)}")
        kind = self.schema.field(column).type
        if not (pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)):
            raise InputError(f"{self.name}: the column {column!r} holds {kind}; expected lists of numbers")
        self.embed_dim = kind.list_size if pa.types.is_fixed_size_list(kind) else None

    def _lists(self) -> Iterator:
        """The column in `pyarrow` arrays."""
        raise NotImplementedError

    def _first_length(self) -> int:
        """The length of the first vector, before which there may be rows without one."""
        for lists in self._lists():
            if lists.null_count < len(lists):
                return len(lists.drop_null()[0])
        raise InputError(f"{self.name}: has no vector in {self.column!r}; expected some")

    def _as_block(self, lists, first_row: int) -> np.ndarray:
        """A `pyarrow` array of lists as an array [n, D], without a copy where no value is missing."""
        import pyarrow as pa

        if lists.null_count:
            valid = lists.is_valid().to_numpy(zero_copy_only=False)
            block = np.full((len(lists), self.embed_dim), np.nan, np.float32)
            if valid.any():
                block[valid] = self._as_block(lists.drop_null(), first_row)
            return block
        if not (pa.types.is_fixed_size_list(lists.type) and lists.type.list_size == self.embed_dim):
            lengths = lists.value_lengths().to_numpy()
            wrong = np.flatnonzero(lengths != self.embed_dim)
            if len(wrong):
                raise InputError(
                    f"{self.name}: {self.row_name(first_row + int(wrong[0]))} has {lengths[wrong[0]]} dimensions in "
                    f"{self.column!r}; expected {self.embed_dim} as in the rows before it"
                )
        values = lists.flatten()
        return values.to_numpy(zero_copy_only=values.null_count == 0).reshape(len(lists), self.embed_dim)


class ParquetVectors(TableVectors):
    """A column of vectors in Parquet files, decoded ahead of the reader on several threads.

    Decoding is the limit here (Parquet stores a list's numbers one by one), so row groups are decoded side by side.
    """

    def __init__(self, files: list[Path], column: str | None, name: str, provenance: dict):
        import pyarrow.parquet as pq

        self.files, self.name, self.provenance = files, name, provenance
        try:
            self.metadata = [pq.read_metadata(file) for file in files]
        except Exception as error:
            raise InputError(f"{name}: cannot be read as Parquet ({error})") from error
        schemas = [metadata.schema.to_arrow_schema() for metadata in self.metadata]
        for file, schema in zip(files, schemas, strict=True):
            check_names(schema.names, schemas[0].names, file, files[0])
        self.schema = with_known_types(schemas)
        self._open_column(column)
        num_rows = sum(metadata.num_rows for metadata in self.metadata)
        self._check_shape((num_rows, num_rows and (self.embed_dim or self._first_length())))

    def _lists(self) -> Iterator:
        return (batch.column(0) for batch in self._batches(BLOCK_ROWS, [self.column]))

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[np.ndarray]:
        first_row = 0
        for batch in self._batches(rows, [self.column]):
            yield self._as_block(batch.column(0), first_row)
            first_row += len(batch)

    def tables(self) -> Iterator:
        import pyarrow as pa

        first_row = 0
        for batch in self._batches(TABLE_ROWS, None):
            table = self._in_schema(pa.Table.from_batches([batch]), first_row)
            yield table, self._as_block(batch.column(self.column), first_row)
            first_row += len(batch)

    def _in_schema(self, table, first_row: int):
        """A table with its columns in the order and the types of the first file: shards are joined by name."""
        import pyarrow as pa

        table = table.select(self.schema.names)
        for index, field in enumerate(self.schema):
            if table.schema.field(index).type != field.type:
                try:
                    table = table.set_column(index, field.name, table.column(index).cast(field.type))
                except pa.ArrowException as error:
                    raise InputError(
                        f"{self.name}: {field.name!r} holds {table.schema.field(index).type} from row {first_row} on, "
                        f"and {field.type} before; write all files with the same types"
                    ) from error
        return table

    def _batches(self, rows: int, columns: list[str] | None) -> Iterator:
        groups = [(file, group) for file, data in enumerate(self.metadata) for group in range(data.num_row_groups)]
        largest = max(self.metadata[file].row_group(group).total_byte_size for file, group in groups)
        if largest <= _ROW_GROUP_BYTES and len(groups) > 1:
            for batches in parallel_map(lambda group: list(self._read(*group, rows, columns)), groups):
                yield from batches
        else:
            for group in groups:
                yield from self._read(*group, rows, columns)

    def _read(self, file: int, group: int, rows: int, columns: list[str] | None) -> Iterator:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self.files[file], metadata=self.metadata[file], buffer_size=1 << 20) as parquet:
                yield from parquet.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{self.files[file]}: cannot be read as Parquet ({error})") from error

    def ids(self) -> list[str] | None:
        import pyarrow.parquet as pq

        if "id" not in self.schema.names:
            return None
        return [str(value) for file in self.files for value in pq.read_table(file, columns=["id"])["id"].to_pylist()]

    def row_id(self, row: int) -> str | None:
        ids = self.ids()
        return None if ids is None else ids[row]


class DatasetVectors(TableVectors):
    """A column of vectors of a `datasets.Dataset`, read from its Arrow table."""

    def __init__(self, dataset, column: str | None, name: str, provenance: dict):
        self.dataset, self.name, self.provenance = dataset, name, provenance
        self.schema = dataset.features.arrow_schema
        self._open_column(column)
        self._check_shape((len(dataset), self.embed_dim or self._first_length()))

    def _lists(self) -> Iterator:
        tables = self._batches(self.dataset.select_columns(self.column), BLOCK_ROWS)
        return (table.column(0).combine_chunks() for table in tables)

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[np.ndarray]:
        first_row = 0
        for table in self._batches(self.dataset.select_columns(self.column), rows):
            for chunk in table.column(0).chunks:
                yield self._as_block(chunk, first_row)
                first_row += len(chunk)

    def tables(self) -> Iterator:
        first_row = 0
        for table in self._batches(self.dataset, TABLE_ROWS):
            yield table, self._as_block(table.column(self.column).combine_chunks(), first_row)
            first_row += len(table)

    def _batches(self, dataset, rows: int) -> Iterator:
        return dataset.with_format("arrow").iter(rows)

    def ids(self) -> list[str] | None:
        return [str(value) for value in self.dataset["id"]] if "id" in self.dataset.column_names else None

    def row_id(self, row: int) -> str | None:
        return str(self.dataset[row]["id"]) if "id" in self.dataset.column_names else None


def parquet_files(path: Path) -> list[Path]:
    """The Parquet files that `read_dataset(path)` would read; empty where it holds something else.

    `datasets` takes seconds to import and gigabytes to convert; Parquet files need neither.
    """
    if not path.exists():
        return []
    found = find_data_files(path)
    return found.of_split("train") if found.format == "parquet" else []


def check_names(names: list[str], expected: list[str], file, first) -> None:
    """Raise `InputError` unless a file has the columns of the first one, each once, in whatever order."""
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{file}: has several columns {twice[0]!r}; expected each name once")
    if differing := sorted(set(names) ^ set(expected)):
        what = "lacks the column" if differing[0] in expected else "has a further column"
        raise InputError(f"{file}: {what} {differing[0]!r} compared to {first}; write both with the same columns")


def with_known_types(schemas: list):
    """The first schema, its columns of nothing but null in the type of the first schema that knows one."""
    import pyarrow as pa

    first = schemas[0]
    for index, field in enumerate(first):
        if pa.types.is_null(field.type):
            known = (schema.field(field.name) for schema in schemas)
            field = next((each for each in known if not pa.types.is_null(each.type)), field)
            first = first.set(index, field)
    return first


def unit_rows(block: np.ndarray, dtype=np.float32) -> tuple[np.ndarray, np.ndarray]:
    """A copy of `block` [n, D] with rows of unit length, and the indices of those that have none (NaN, Inf, zero)."""
    rows, bad = UnitRows.of_block(block, dtype)
    return rows.dense(), bad


def parallel_map(function: Callable, items: Iterable, threads: int | None = None) -> Iterator:
    """`map(function, items)`, in order, on several threads that run a bounded number of items ahead.

    NumPy and pyarrow release the interpreter's lock, so threads are enough.
    """
    threads = THREADS if threads is None else threads
    if threads <= 1:
        yield from map(function, items)
        return
    # glibc gives freed memory back to the system, and fetches it again page by page, unless it has seen a larger array
    # freed: without this, moving 1280-d vectors spends a tenth of its time on that.
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
