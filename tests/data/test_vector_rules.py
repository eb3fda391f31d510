"""Any table of vectors is read as it is, or refused in one sentence, by every reader alike."""

import decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unicorn_hf.dataset_scripts.embedding_lookup import EmbeddingLookup
from unicorn_hf.dataset_scripts.sources import PRETRAIN, TableSource

from unicorn_hf import InputError
from unicorn_hf.data.shards import write_shards
from unicorn_hf.data.unit_rows import UnitRows
from unicorn_hf.data.usable_vectors import as_float16, find_unusable
from unicorn_hf.data.vectors import open_vectors
from unicorn_hf.transfer import Moments

DIM = 4
# Parquet written and read by pyarrow before 26 has no null among lists of one length.
CAN_LACK_VECTORS = int(pa.__version__.split(".")[0]) >= 26
few = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
fine = st.lists(st.sampled_from([0.5, -0.25, 1.0, 0.125]), min_size=DIM, max_size=DIM)
wrong = st.sampled_from(
    [None, [], [0.5] * 3, [0.5] * 5, [0.0] * DIM, [float("nan")] * DIM, [0.5, float("inf"), 0, 0], [1e-9] * DIM]
)
kinds = st.sampled_from(
    [
        pa.list_(pa.float16(), DIM),
        pa.list_(pa.float32(), DIM),
        pa.list_(pa.float64(), DIM),
        pa.list_(pa.float16()),
        pa.list_(pa.float32()),
        pa.large_list(pa.float64()),
    ]
)


@st.composite
def shards(draw):
    """The rows of some shards, their type, and the place of the one wrong row, if there is any."""
    rows = draw(st.lists(fine, min_size=1, max_size=9))
    place = draw(st.none() | st.integers(0, len(rows) - 1))
    if place is not None:
        rows[place] = draw(wrong)
    cut = draw(st.integers(0, len(rows)))
    return [rows[:cut], rows[cut:]], draw(kinds), draw(st.sampled_from([".arrow", ".parquet"]))


def write(folder, parts, kind, suffix):
    """Shards of `id, caption, image_embeds`; None where this type cannot hold such rows."""
    files = [part for part in parts if part]
    row = 0
    for index, part in enumerate(files):
        ids = [f"i{place}" for place in range(row, row + len(part))]
        values = [None if vector is None else np.array(vector, np.float64) for vector in part]
        if pa.types.is_fixed_size_list(kind) and any(
            each is not None and len(each) != kind.list_size for each in values
        ):
            return None
        numbers = kind.value_type.to_pandas_dtype()
        with np.errstate(all="ignore"):
            lists = pa.array([None if each is None else each.astype(numbers) for each in values], kind)
        table = pa.table({"id": ids, "caption": ["a"] * len(part), "image_embeds": lists})
        if suffix == ".arrow":
            (file,) = write_shards([table], folder / "part", table.schema).files
            file.rename(folder / f"train-{index:05d}-of-{len(files):05d}.arrow")
        else:
            if not CAN_LACK_VECTORS and pa.types.is_fixed_size_list(kind) and lists.null_count:
                return None
            pq.write_table(table, folder / f"train-{index:05d}-of-{len(files):05d}.parquet")
        row += len(part)
    (folder / "part").rmdir() if (folder / "part").exists() else None
    return folder


def publish(folder, **options):
    source = TableSource(PRETRAIN, folder, **options)
    return [row["id"] for table in source.tables(source.shards, Ignored()) for row in table.to_pylist()]


class Ignored:
    def add(self, reason, record):
        assert reason.startswith("embedding")


READERS = {
    "publish": publish,
    "transfer": lambda folder: Moments.measure(folder, "image_embeds"),
    "look-up": lambda folder: EmbeddingLookup.open(folder),
}


@few
@given(shards())
@pytest.mark.parametrize("reader", READERS)
def test_a_wrong_row_is_named_by_every_reader_and_a_fine_table_is_read(reader, tmp_path_factory, table):
    parts, kind, suffix = table
    if (folder := write(tmp_path_factory.mktemp("table"), parts, kind, suffix)) is None:
        return
    rows = [row for part in parts for row in part]
    dim = next((len(row) for row in rows if row), DIM)  # of the first vector
    bad = [place for place, row in enumerate(rows) if row is None or len(row) != dim or is_wrong(row, kind)]
    if reader == "transfer" and kind.value_type != pa.float16():
        bad = [place for place in bad if rows[place] != [1e-9] * DIM]  # it brings vectors to unit length first
    if not bad:
        READERS[reader](folder)
        return
    with pytest.raises(InputError) as error:
        READERS[reader](folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)
    assert f"'i{bad[0]}'" in str(error.value) or not any(rows)


@few
@given(shards())
def test_rows_that_are_left_out_are_those_that_are_wrong(tmp_path_factory, table):
    parts, kind, suffix = table
    rows = [row for part in parts for row in part]
    if not all(row is not None and len(row) == DIM for row in rows):
        return
    folder = write(tmp_path_factory.mktemp("table"), parts, kind, suffix)
    kept = [f"i{place}" for place, row in enumerate(rows) if not is_wrong(row, kind)]
    assert publish(folder, skip_non_finite=True) == kept


def is_wrong(row, kind) -> bool:
    with np.errstate(all="ignore"):
        half = np.array(row, np.float64).astype(kind.value_type.to_pandas_dtype()).astype(np.float16)
    return not np.isfinite(half).all() or not half.any()


NOT_NUMBERS = {
    "booleans": [[True, False]],
    "strings": [["a", "b"]],
    "decimals": [[decimal.Decimal("0.5"), decimal.Decimal("0.25")]],
    "nested lists": [[[0.5], [0.25]]],
    "a string": ["0.5 0.25"],
    "a number": [0.5],
    "nothing": [None],
    "empty lists": pa.array([[]], pa.list_(pa.float32())),
    "structs": [{"x": 0.5}],
    "bytes": [b"abcd"],
}


@pytest.mark.parametrize("name", NOT_NUMBERS)
@pytest.mark.parametrize("suffix", [".arrow", ".parquet"])
@pytest.mark.parametrize("reader", READERS)
def test_a_column_that_holds_no_vectors_is_one_sentence(reader, suffix, name, tmp_path):
    table = pa.table({"id": ["a"], "caption": ["b"], "image_embeds": NOT_NUMBERS[name]})
    write_table(table, tmp_path / f"rows{suffix}")
    with pytest.raises(InputError, match="image_embeds") as error:
        READERS[reader](tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".arrow", ".parquet"])
@pytest.mark.parametrize("reader", READERS)
def test_two_columns_of_one_name_and_files_of_no_rows_are_one_sentence(reader, suffix, tmp_path):
    vectors = pa.array([[0.5, 1.0]], pa.list_(pa.float16(), 2))
    table = pa.table([["a"], ["b"], vectors, vectors], names=["id", "caption", "image_embeds", "image_embeds"])
    for rows, words in ((table, "several columns 'image_embeds'"), (table.select([0, 1, 2]).slice(1), "has no row")):
        write_table(rows, tmp_path / f"rows{suffix}")
        with pytest.raises(InputError, match=words):
            READERS[reader](tmp_path)


def write_table(table, file):
    if file.suffix == ".parquet":
        pq.write_table(table, file)
        return
    with pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


@few
@given(
    st.lists(st.floats(-1, 1, width=32), min_size=8, max_size=8),
    st.integers(-12, 12),
    st.sampled_from([np.float32, np.float64]),
)
def test_what_float16_keeps_has_still_the_same_direction(numbers, exponent, dtype):
    block = (np.array([numbers]) * 10.0**exponent).astype(dtype)
    half, unusable = as_float16(block)
    if not len(find_unusable(block)) and not len(unusable):
        ours, theirs = (UnitRows.of_block(each.astype(np.float64), np.float64)[0].dense() for each in (half, block))
        assert np.linalg.norm(ours - theirs) < 5e-3
    if len(find_unusable(half)):
        assert len(unusable)


def test_every_kind_of_source_gives_the_same_vectors(tmp_path):
    rows = [[0.5, 0.25, 1.0, 0.125], [1.0, 0.5, 0.25, 0.5]]
    for number, kind in enumerate([pa.list_(pa.float16(), DIM), pa.list_(pa.float32()), pa.large_list(pa.float64())]):
        (folder := tmp_path / str(number)).mkdir()
        write(folder, [rows], kind, ".arrow")
        assert np.concatenate(list(open_vectors(folder, "image_embeds").blocks())).tolist() == rows
