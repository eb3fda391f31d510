"""Write transferred vectors block by block: a `.npy` file, or a dataset folder with one more column than its source."""

import functools
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from unicorn_hf.data.dataset_folder import write_card
from unicorn_hf.data.staging import new_file, new_folder
from unicorn_hf.data.vector_sets import Vectors
from unicorn_hf.errors import InputError
from unicorn_hf.transfer.moments import no_vectors

logger = logging.getLogger(__name__)

SHARD_BYTES = 500 << 20


def write_transferred(
    transfer,
    vectors: Vectors,
    output: Path,
    out_column: str,
    *,
    skip_non_finite: bool,
    overwrite: bool | None = None,
) -> None:
    """Write `transfer` applied to `vectors` to `output` (see `ModalityTransfer.apply`), in bounded memory."""
    skipped: list[str] = []
    kept_rows = functools.partial(_kept, transfer, vectors, skip=skip_non_finite, skipped=skipped)
    if output.suffix == ".npy":
        with new_file(output, overwrite=overwrite, inputs=[vectors.name]) as file:
            _write_npy(kept_rows, vectors, file)
    else:
        with new_folder(output, overwrite=overwrite, inputs=[vectors.name]) as folder:
            _write_folder(kept_rows, transfer, vectors, folder, out_column)
    if skipped:
        logger.warning(
            "%s: left out %d rows that hold NaN, Inf or zeros: %s", vectors.name, len(skipped), ", ".join(skipped)
        )


def _write_npy(kept_rows: Callable, vectors: Vectors, output: Path) -> None:
    """Write float16 if the source is float16, else float32."""
    half = getattr(vectors, "dtype", np.float16) == np.float16
    # Buffered, because an unbuffered write on a full disk can write only a part and raise no error.
    with output.open("wb") as file:
        rows = _write_npy_header(file, half, vectors.num_rows, vectors.embed_dim)
        written = 0
        for _, moved, _ in kept_rows(half=half):
            if len(moved):
                file.write(memoryview(moved).cast("B"))
            written += len(moved)
        if not written:
            raise no_vectors(vectors)
        if written != rows:
            file.seek(0)
            _write_npy_header(file, half, written, vectors.embed_dim)


def _write_npy_header(file, half: bool, rows: int, embed_dim: int) -> int:
    # NumPy pads the header, so the number of rows can change in place.
    header = {"descr": "<f2" if half else "<f4", "fortran_order": False, "shape": (rows, embed_dim)}
    np.lib.format.write_array_header_1_0(file, header)
    return rows


def _write_folder(kept_rows: Callable, transfer, vectors: Vectors, folder: Path, out_column: str) -> None:
    import pyarrow as pa

    from unicorn_hf.data.shards import as_lists, write_shards

    schema = vectors.table_schema()
    if not out_column.strip():
        raise InputError(f"--out-column is {out_column!r}; expected the name of a column")
    if out_column in schema.names:
        raise InputError(f"{vectors.name}: has a column {out_column!r} already; name another with --out-column")
    metadata = _with_feature(schema.metadata, out_column, vectors.embed_dim)
    schema = schema.append(pa.field(out_column, pa.list_(pa.float16(), vectors.embed_dim))).with_metadata(metadata)

    def tables():
        for table, moved, kept in kept_rows(with_tables=True):
            table = table if kept is None else table.take(kept)
            yield pa.table([*table.columns, as_lists(moved)], schema=schema)

    shards = write_shards(tables(), folder / "data", schema, shard_size=SHARD_BYTES)
    if not shards.num_rows:
        raise no_vectors(vectors)
    write_card(
        folder,
        title=f"{out_column} by the {transfer.method} transfer",
        num_rows=shards.num_rows,
        columns={field.name: _type_text(field.type) for field in schema},
        provenance={**vectors.provenance, out_column: transfer.provenance},
        fingerprint=shards.fingerprint,
    )


def _with_feature(metadata: dict | None, column: str, embed_dim: int) -> dict | None:
    """The schema's metadata, where `datasets` keeps its features, plus the feature of the new column."""
    if not metadata or b"huggingface" not in metadata:
        return metadata
    info = json.loads(metadata[b"huggingface"])
    feature = {"feature": {"dtype": "float16", "_type": "Value"}, "length": embed_dim, "_type": "List"}
    info["info"]["features"][column] = feature
    return {**metadata, b"huggingface": json.dumps({"info": {"features": info["info"]["features"]}}).encode()}


def _type_text(kind) -> str:
    import pyarrow as pa

    if pa.types.is_fixed_size_list(kind):
        return f"List({str(kind.value_type).replace('halffloat', 'float16')}, length={kind.list_size})"
    return str(kind)


def _kept(transfer, vectors: Vectors, *, skip: bool, skipped: list[str], half: bool = True, with_tables: bool = False):
    """Yield for each block: its table (None without `with_tables`), its usable transferred rows, and their indices.

    The indices are None if all rows are usable. The names of the other rows are added to `skipped`.
    """
    first_row = 0
    for table, lost, moved in transfer.transferred_tables(vectors, with_tables=with_tables, half=half, keep_bad=skip):
        skipped += [vectors.row_name(first_row + int(row)) for row in lost]
        first_row += len(moved)
        kept = np.delete(np.arange(len(moved)), lost) if len(lost) else None
        yield table, (moved if kept is None else moved[kept]), kept
