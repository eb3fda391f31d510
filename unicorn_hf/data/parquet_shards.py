"""Tables of rows -> Parquet shards as the Hub wants them: bounded size, page index, content-defined chunking.

Vectors are written as plain lists without null flags, dictionary, compression or statistics: they neither repeat nor
compress, and readers decode such a column about ten times as fast as one written with the defaults (docs/datasets.md).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from datasets import Features

# Larger row groups are slower to write: content-defined chunking of a list column takes more than linear time.
ROW_GROUP_BYTES = 2 << 20


@dataclass
class Shards:
    """What was written: the files, their rows, and the rows' size in memory."""

    files: list[Path]
    num_rows: int
    num_bytes: int


def write_parquet_shards(
    tables: Iterable[pa.Table], folder: Path, features: "Features", *, shard_size: int, split: str = "train"
) -> Shards:
    """Write tables in the schema of `features` as `<split>-00000-of-0000N.parquet` of about `shard_size` bytes each.

    The tables pass through: a row group is the most that is in memory.
    """
    folder.mkdir(parents=True, exist_ok=True)
    schema = with_plain_vectors(features.arrow_schema)
    parts: list[Path] = []
    writer, num_rows, num_bytes = None, 0, 0
    try:
        for table in row_groups(tables):
            if writer is None or parts[-1].stat().st_size >= shard_size:
                if writer is not None:
                    writer.close()
                parts.append(folder / f"{len(parts)}.parquet")
                writer = open_writer(parts[-1], schema)
            writer.write_table(pa.table(table.select(schema.names).columns, schema=schema))
            num_rows += len(table)
            num_bytes += table.nbytes
    finally:
        if writer is not None:
            writer.close()
    files = [folder / f"{split}-{index:05d}-of-{len(parts):05d}.parquet" for index in range(len(parts))]
    for part, file in zip(parts, files, strict=True):
        part.rename(file)
    return Shards(files, num_rows, num_bytes)


def with_plain_vectors(schema: pa.Schema, columns: Iterable[str] | None = None) -> pa.Schema:
    """`schema` with vectors that cannot be null, in these columns or in all that have any."""
    for index, field in enumerate(schema):
        if pa.types.is_fixed_size_list(field.type) and (columns is None or field.name in columns):
            item = pa.field("item", field.type.value_type, nullable=False)
            schema = schema.set(index, pa.field(field.name, pa.list_(item, field.type.list_size), nullable=False))
    return schema


def row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The tables' rows in tables of about `ROW_GROUP_BYTES`."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(each.nbytes for each in waiting) >= ROW_GROUP_BYTES:
            yield pa.concat_tables(waiting).combine_chunks()
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def open_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    from datasets.config import DEFAULT_CDC_OPTIONS

    return pq.ParquetWriter(
        path,
        schema,
        **column_options(schema),
        write_page_index=True,
        # A flipped bit in an uncompressed page would be a wrong number, and nothing more.
        write_page_checksum=True,
        use_content_defined_chunking=DEFAULT_CDC_OPTIONS,
    )


def column_options(schema: pa.Schema) -> dict:
    """pyarrow's options for text that is compressed and vectors that are not."""
    vectors = [field.name for field in schema if pa.types.is_fixed_size_list(field.type)]
    leaves = leaf_paths(schema)
    text = [path for path in leaves if path.split(".")[0] not in vectors]
    return {
        "compression": {path: "ZSTD" if path in text else "NONE" for path in leaves},
        "use_dictionary": text,
        "write_statistics": text,
    }


def leaf_paths(schema: pa.Schema) -> list[str]:
    """Parquet's names of the columns' leaves, such as `messages.list.element.role`."""
    sink = pa.BufferOutputStream()
    pq.ParquetWriter(sink, schema).close()
    parquet = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    return [parquet.column(index).path for index in range(len(parquet))]
