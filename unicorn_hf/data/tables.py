"""Rows of Arrow files, Parquet files or a `datasets.Dataset`, in pieces that threads can read in parallel.

Arrow files are mapped and Parquet files decoded; neither needs `datasets`, which takes seconds to import. Columns of
several shards are matched by name.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from unicorn_hf.data.data_files import find_data_files
from unicorn_hf.data.shards import BATCH_ROWS
from unicorn_hf.errors import InputError

_MAPPED_FILES = 4  # mapped at a time, since their pages count as this process's memory
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


class Piece(NamedTuple):
    """Rows that are read together."""

    file: int
    group: int  # a record batch, a row group, or a dataset's rows
    first_row: int  # in the group
    num_rows: int
    num_bytes: int  # to decode; 0 if the rows are only mapped


def table_files(path: Path, name: str | None = None) -> list[Path]:
    """The Arrow or Parquet files that `read_dataset(path, name)` would read; empty for any other format."""
    if not path.exists():
        return []
    found = find_data_files(path, name)
    return found.of_split("train") if found.format in ("arrow", "parquet") else []


def open_tables(files: list[Path], name: str) -> "Tables":
    """The rows of Arrow or Parquet files.

    Raises:
        InputError: a file is missing or damaged, its columns differ from the first file's, or there is no row.
    """
    promised = {int(match[1]) for file in files if (match := re.search(r"-of-(\d+)\.(arrow|parquet)$", file.name))}
    if promised and promised != {len(files)}:
        raise InputError(
            f"{files[0].parent}: holds {len(files)} of {max(promised)} shards; fetch or write the folder again"
        )
    return (ArrowTables if files[0].suffix.lower() == ".arrow" else ParquetTables)(files, name)


class Tables:
    """Rows of one schema.

    Attributes:
        name: the source, for messages.
        schema: the first file's; an all-null column has the type of the first file that has one.
        num_rows: the total.
        files, pieces: in the order of the rows.
    """

    kind: str  # for messages
    name: str
    schema: pa.Schema
    num_rows: int
    files: list[Path] = []  # noqa: RUF012 (replaced, never changed)
    pieces: list[Piece]

    def read(self, piece: Piece, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The rows of a piece in tables of at most `BATCH_ROWS` rows: all columns, or these in this order."""
        columns = self.schema.names if columns is None else columns
        metadata = self.schema.metadata if len(columns) == len(self.schema) else None
        schema = pa.schema([self.schema.field(column) for column in columns], metadata)
        try:
            for table in self._read(piece, columns):
                table = table.select(columns)
                arrays = [
                    column if column.type == field.type else column.cast(field.type)
                    for column, field in zip(table.columns, schema, strict=True)
                ]
                yield pa.table(arrays, schema=schema) if columns else table
        except (pa.ArrowException, OSError) as error:
            if "Expected all lists to be of size" in str(error):  # pyarrow before 26, whatever the row
                raise InputError(
                    f"{self.where(piece)}: a vector is missing (null), which pyarrow {pa.__version__} cannot read; "
                    "leave such rows out, or install pyarrow 26 or newer"
                ) from error
            raise InputError(
                f"{self.where(piece)}: cannot be read as {self.kind} ({first_line(error)}); write it again"
            ) from error

    def read_all(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        return (table for piece in self.pieces for table in self.read(piece, columns))

    def where(self, piece: Piece) -> str:
        """The file of a piece, for messages."""
        return str(self.files[piece.file])

    def row_id(self, row: int) -> str | None:
        """The `id` of a row, counted over all files; None if there is no such column."""
        if "id" not in self.schema.names:
            return None
        for piece in self.pieces:
            if row < piece.num_rows:
                for table in self.read(piece, ["id"]):
                    if row < len(table):
                        return str(table.column("id")[row])
                    row -= len(table)
            row -= piece.num_rows
        return None

    def ids(self) -> list[str] | None:
        """The ids of all rows; None if there is no column `id`."""
        if "id" not in self.schema.names:
            return None
        return [str(value) for table in self.read_all(["id"]) for value in table.column("id").to_pylist()]

    def _read(self, piece: Piece, columns: list[str]) -> Iterator[pa.Table]:
        raise NotImplementedError

    def _join(self, schemas: list[pa.Schema]) -> None:
        """Set `num_rows` and the common `schema` of the files.

        Raises:
            InputError: there is no row, or the schemas do not fit together.
        """
        self.num_rows = sum(piece.num_rows for piece in self.pieces)
        if not self.num_rows:
            raise InputError(f"{self.name}: has no row; expected at least one")
        self.schema = schemas[0]
        for file, schema in zip(self.files, schemas, strict=True):
            if twice := sorted({name for name in schema.names if schema.names.count(name) > 1}):
                raise InputError(f"{file}: has several columns {twice[0]!r}; expected each name once")
            if differing := sorted(set(schema.names) ^ set(self.schema.names)):
                what = "lacks the column" if differing[0] in self.schema.names else "has a further column"
                raise InputError(
                    f"{file}: {what} {differing[0]!r} compared to {self.files[0]}; write both with the same columns"
                )
        for index, first in enumerate(self.schema):
            kinds = [schema.field(first.name) for schema in schemas]
            known = next((kind for kind in kinds if not pa.types.is_null(kind.type)), first)
            if is_list(known.type):  # vectors of several widths are read as the widest
                widest = max((kind.type.value_type for kind in kinds if is_list(kind.type)), key=_float_bits)
                known = _with_numbers(known, widest)
            self.schema = self.schema.set(index, known)
            for number, kind in enumerate(kinds):
                self._check_type(number, kind, known)

    def _check_type(self, file: int, kind: pa.Field, expected: pa.Field) -> None:
        if is_alike(kind.type, expected.type) or not (mine := [p for p in self.pieces if p.file == file]):
            return
        sizes = [each.list_size for each in (kind.type, expected.type) if pa.types.is_fixed_size_list(each)]
        if len(sizes) == 2 and kind.type.value_type == expected.type.value_type:
            row = sum(piece.num_rows for piece in self.pieces if piece.file < file)
            id_ = str(next(self.read(mine[0], ["id"])).column("id")[0]) if "id" in self.schema.names else None
            raise InputError(
                f"{self.files[file]}: its schema is not that of {self.files[0].name}: {kind.name!r} holds {kind.type}, "
                f"and so {row_name(row, id_)} has {sizes[0]} dimensions in {kind.name!r}; expected {sizes[1]}"
            )
        raise InputError(
            f"{self.files[file]}: its schema is not that of {self.files[0].name}: {kind.name!r} holds {kind.type}, not "
            f"{expected.type}; write both with the same types"
        )


class ArrowTables(Tables):
    """Arrow files of either IPC format, mapped: bytes are read only when they are used."""

    kind = "Arrow"

    def __init__(self, files: list[Path], name: str):
        self.files, self.name = files, name
        self._mapped: dict[int, tuple] = {}
        self.pieces, schemas = [], []
        for number, file in enumerate(files):
            try:
                schema, batches, _ = self._map(number)
            except (pa.ArrowException, OSError) as error:
                raise InputError(f"{file}: cannot be read as Arrow ({first_line(error)}); write it again") from error
            schemas.append(schema)
            for group, batch in enumerate(batches):
                for start in range(0, len(batch), BATCH_ROWS):
                    self.pieces.append(Piece(number, group, start, min(BATCH_ROWS, len(batch) - start), 0))
        self._join(schemas)

    def _read(self, piece: Piece, columns: list[str]) -> Iterator[pa.Table]:
        batch = self._map(piece.file)[1][piece.group]
        table = pa.Table.from_batches([batch.slice(piece.first_row, piece.num_rows)]).select(columns)
        table.validate(full=True)  # with a damaged offset, Arrow would read beyond the end of the file
        yield table

    def find(self, piece: Piece, column: str) -> tuple[Path, int] | None:
        """The file and byte offset of a piece's numbers in a column of vectors; None if they are not contiguous."""
        _, batches, base = self._map(piece.file)
        lists = batches[piece.group].column(column)
        if lists.null_count or not pa.types.is_fixed_size_list(lists.type) or lists.values.null_count:
            return None
        lists.validate()
        width = lists.type.value_type.bit_width // 8
        start = (lists.offset + piece.first_row) * lists.type.list_size + lists.values.offset
        address = lists.values.buffers()[1].address + start * width
        if not base.address <= address < base.address + base.size:  # the file is compressed: the buffer is a copy
            return None
        return self.files[piece.file], address - base.address

    def _map(self, number: int) -> tuple[pa.Schema, list[pa.RecordBatch], pa.Buffer]:
        mapped = self._mapped.get(number)
        if mapped is None:  # threads may race here; each then uses its own local `mapped`
            for oldest in list(self._mapped)[: 1 - _MAPPED_FILES]:
                self._mapped.pop(oldest, None)
            mapped = self._mapped[number] = _map_arrow(self.files[number])
        return mapped

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_mapped": {}}


class ParquetTables(Tables):
    """Parquet files; a piece is a row group."""

    kind = "Parquet"

    def __init__(self, files: list[Path], name: str):
        import pyarrow.parquet as pq

        self.files, self.name = files, name
        self.pieces, schemas = [], []
        for number, file in enumerate(files):
            try:
                metadata = pq.read_metadata(file)
                schemas.append(metadata.schema.to_arrow_schema())
            except (pa.ArrowException, OSError) as error:
                raise InputError(f"{file}: cannot be read as Parquet ({first_line(error)}); write it again") from error
            for group in range(metadata.num_row_groups):
                rows = metadata.row_group(group)
                self.pieces.append(Piece(number, group, 0, rows.num_rows, rows.total_byte_size))
        self._join(schemas)

    def _read(self, piece: Piece, columns: list[str]) -> Iterator[pa.Table]:
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.files[piece.file], page_checksum_verification=True, buffer_size=1 << 20) as parquet:
            for batch in parquet.iter_batches(BATCH_ROWS, row_groups=[piece.group], columns=columns, use_threads=False):
                yield pa.Table.from_batches([batch])


class DatasetTables(Tables):
    """A `datasets.Dataset`, in ranges of rows."""

    kind = "a dataset"

    def __init__(self, dataset, name: str):
        self.dataset, self.name, self.schema, self.num_rows = dataset, name, dataset.features.arrow_schema, len(dataset)
        self.pieces = [
            Piece(0, 0, start, min(BATCH_ROWS, len(dataset) - start), 0) for start in range(0, len(dataset), BATCH_ROWS)
        ]
        if not self.num_rows:
            raise InputError(f"{name}: has no row; expected at least one")

    def _read(self, piece: Piece, columns: list[str]) -> Iterator[pa.Table]:
        rows = self.dataset.select_columns(columns).with_format("arrow")
        yield rows[piece.first_row : piece.first_row + piece.num_rows]

    def where(self, piece: Piece) -> str:
        return self.name


def is_alike(kind: pa.DataType, expected: pa.DataType) -> bool:
    """Whether `kind` can become `expected` without a change of values: floats may widen, list lengths must match."""
    if kind == expected or pa.types.is_null(kind):
        return True
    if 0 < _float_bits(kind) <= _float_bits(expected):
        return True
    for is_text in (_is_string, _is_binary):
        if is_text(kind) and is_text(expected):
            return True
    if is_list(kind) and is_list(expected):
        both_fixed = pa.types.is_fixed_size_list(kind) and pa.types.is_fixed_size_list(expected)
        same_length = not both_fixed or kind.list_size == expected.list_size
        return same_length and is_alike(kind.value_type, expected.value_type)
    return False


def is_list(kind: pa.DataType) -> bool:
    return pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)


def row_name(row: int, id_: str | None) -> str:
    return f"row {row}" if id_ is None else f"row {row} (id {id_!r})"


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _float_bits(kind: pa.DataType) -> int:
    return kind.bit_width if pa.types.is_floating(kind) else 0


def _with_numbers(column: pa.Field, numbers: pa.DataType) -> pa.Field:
    """A column of lists of floating-point numbers with numbers of another width."""
    kind, value = column.type, pa.field("item", numbers)
    if _float_bits(kind.value_type) in (0, _float_bits(numbers)):
        return column
    if pa.types.is_fixed_size_list(kind):
        return column.with_type(pa.list_(value, kind.list_size))
    return column.with_type(pa.large_list(value) if pa.types.is_large_list(kind) else pa.list_(value))


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _map_arrow(file: Path) -> tuple[pa.Schema, list[pa.RecordBatch], pa.Buffer]:
    """The schema and record batches of an Arrow file, and the mapped file itself."""
    with pa.memory_map(str(file)) as mapped:
        whole = mapped.read_buffer()
    if whole.size >= 6 and whole[:6].to_pybytes() == b"ARROW1":
        reader = pa.ipc.open_file(whole)
        batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
    else:
        reader = pa.ipc.open_stream(whole)
        batches = list(reader)
        if whole[-8:].to_pybytes() != _END_OF_STREAM:
            raise pa.ArrowInvalid("it is cut short")
    for batch in batches:
        batch.validate()
    return reader.schema, batches, whole
