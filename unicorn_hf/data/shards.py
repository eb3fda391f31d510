"""Write tables as shards `train-00000-of-0000N`: Arrow for the steps, Parquet for the Hub.

Arrow is the IPC stream format: `datasets` opens and streams it, and reading it only maps the file. Parquet follows the
Hub's advice: page index and content-defined chunking. Its vectors are plain lists without null flags, dictionary,
compression or statistics, since vectors neither repeat nor compress; readers decode such a column about ten times as
fast as one written with the defaults (docs/datasets.md).
"""

import contextlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from xxhash import xxh3_64

from unicorn_hf.data.staging import sync

BATCH_ROWS = 1000  # of Arrow
# Of Parquet. Larger groups are slower to write: content-defined chunking of a list column takes more than linear time.
ROW_GROUP_BYTES = 2 << 20
SHARD_BYTES = 500 << 20
SYNC_BYTES = 64 << 20  # the disk takes these while the next ones are made, so that little is left to sync at the end


@dataclass
class Shards:
    """The written files, their rows, the rows' size in memory, and a hash of the files' contents."""

    files: list[Path] = field(default_factory=list)
    num_rows: int = 0
    num_bytes: int = 0
    fingerprint: str = ""


def write_shards(
    tables: Iterable[pa.Table],
    folder: Path,
    schema: pa.Schema,
    *,
    split: str = "train",
    shard_size: int = SHARD_BYTES,
    suffix: str = ".arrow",
) -> Shards:
    """Write tables with this schema as `<split>-00000-of-0000N<suffix>`, each of about `shard_size` bytes.

    At most one record batch or row group is in memory at a time.

    Args:
        suffix: `.arrow` or `.parquet`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if suffix == ".arrow":
        open_writer, groups = pa.ipc.new_stream, _batches
    else:
        open_writer, groups, schema = _open_parquet, _row_groups, with_plain_vectors(schema)
    shards, digest = Shards(), xxh3_64()
    parts: list[Path] = []
    synced: list[Future] = []
    with ThreadPoolExecutor(1) as thread, contextlib.ExitStack() as open_shard:
        file: _HashedFile | None = None
        writer: Any = None  # of pyarrow, which has no types
        for table in groups(tables):
            if file is None or file.size >= shard_size:
                open_shard.close()
                parts.append(folder / f".{len(parts)}.partial")
                file = open_shard.enter_context(_HashedFile(parts[-1], digest))
                writer = open_shard.enter_context(open_writer(file, schema))
            writer.write_table(pa.table(table.select(schema.names).columns, schema=schema))
            shards.num_rows += len(table)
            shards.num_bytes += table.nbytes
            if shards.num_bytes >= SYNC_BYTES * (len(synced) + 1) and (not synced or synced[-1].done()):
                synced.append(thread.submit(sync, parts[-1]))
    for each in synced:
        each.result()
    for index, part in enumerate(parts):
        shards.files.append(folder / f"{split}-{index:05d}-of-{len(parts):05d}{suffix}")
        part.rename(shards.files[-1])
    shards.fingerprint = digest.hexdigest()
    return shards


def write_arrow(table: pa.Table, path: Path) -> str:
    """Write one Arrow shard; returns its `fingerprint`."""
    digest = xxh3_64()
    with _HashedFile(path, digest) as file, pa.ipc.new_stream(file, table.schema) as writer:
        for batch in _batches([table]):
            writer.write_table(batch)
        if not len(table):  # `datasets` 4.7 fails on a file without a batch
            writer.write_batch(pa.RecordBatch.from_pylist([], schema=table.schema))
    return digest.hexdigest()


def fingerprint(files: Iterable[Path]) -> str:
    """The hash of files that were written one by one; the same as `Shards.fingerprint`."""
    digest = xxh3_64()
    buffer = bytearray(4 << 20)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(memoryview(buffer)[:count])
    return digest.hexdigest()


def as_lists(vectors: np.ndarray, kind: pa.DataType | None = None) -> pa.FixedSizeListArray:
    """An array [n, D] as n Arrow lists of length D (of the type `kind`, if given), without a copy."""
    # `pa.array` would do it too, but imports pandas first.
    kind = kind or pa.list_(pa.from_numpy_dtype(vectors.dtype), vectors.shape[1])
    data = [None, pa.py_buffer(np.ascontiguousarray(vectors))]
    return pa.FixedSizeListArray.from_arrays(pa.Array.from_buffers(kind.value_type, vectors.size, data), type=kind)


class _HashedFile:
    """A file whose bytes are hashed while they are written."""

    def __init__(self, path: Path, digest):
        self.file, self.digest, self.size, self.closed = path.open("wb"), digest, 0, False

    def write(self, data) -> int:
        self.digest.update(data)
        self.file.write(data)
        self.size += len(data)
        return len(data)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        """Called when a writer ends; the file itself is closed at the end of the `with` block."""

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.closed = True
        self.file.close()


def _batches(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    for table in tables:
        for start in range(0, len(table), BATCH_ROWS):
            yield table.slice(start, BATCH_ROWS).combine_chunks()


def _row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(each.nbytes for each in waiting) >= ROW_GROUP_BYTES:
            yield pa.concat_tables(waiting).combine_chunks()
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def with_plain_vectors(schema: pa.Schema) -> pa.Schema:
    """`schema` with non-nullable vectors."""
    for index, column in enumerate(schema):
        if pa.types.is_fixed_size_list(column.type):
            item = pa.field("item", column.type.value_type, nullable=False)
            schema = schema.set(index, pa.field(column.name, pa.list_(item, column.type.list_size), nullable=False))
    return schema


def _open_parquet(file, schema: pa.Schema):
    import pyarrow.parquet as pq
    from datasets.config import DEFAULT_CDC_OPTIONS

    vectors = [column.name for column in schema if pa.types.is_fixed_size_list(column.type)]
    leaves = _leaf_paths(schema)
    text = [path for path in leaves if path.split(".")[0] not in vectors]
    return pq.ParquetWriter(
        file,
        schema,
        compression={path: "ZSTD" if path in text else "NONE" for path in leaves},
        use_dictionary=text,
        write_statistics=text,
        write_page_index=True,
        # Without a checksum, a flipped bit in an uncompressed page would go unnoticed.
        write_page_checksum=True,
        use_content_defined_chunking=DEFAULT_CDC_OPTIONS,
    )


def _leaf_paths(schema: pa.Schema) -> list[str]:
    """Parquet's names of the columns' leaves, such as `messages.list.element.role`."""
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.ParquetWriter(sink, schema).close()
    parquet = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    return [parquet.column(index).path for index in range(len(parquet))]
