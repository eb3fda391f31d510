"""The same vectors give the same moments and the same blocks wherever they are kept."""

import json
import pickle

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import save_file

from unicorn_hf import InputError
from unicorn_hf.data import vector_sets
from unicorn_hf.data.dataset_folder import write_dataset
from unicorn_hf.data.vector_sets import parallel_map, unit_rows
from unicorn_hf.data.vectors import open_vectors

DIM = 24


@pytest.fixture
def rows():
    return np.random.default_rng(0).standard_normal((1300, DIM)).astype(np.float16)


def as_dataset(rows, length=DIM, dtype="float16"):
    features = {"id": datasets.Value("string"), "text_embeds": datasets.List(datasets.Value(dtype), length=length)}
    data = {"id": [f"t{row}" for row in range(len(rows))], "text_embeds": list(rows)}
    return datasets.Dataset.from_dict(data, features=datasets.Features(features))


def write_folder(rows, folder):
    return write_dataset(
        as_dataset(rows), folder, title="texts", provenance={"text_embeds": {"encoder": "e", "embed_dim": DIM}}
    )


def many_row_groups(rows, path):
    pq.write_table(as_dataset(rows).data.table, path / "data.parquet", row_group_size=100)
    return path


def npy(rows, path):
    np.save(path / "rows.npy", rows)
    return path / "rows.npy"


def safetensors(rows, path):
    save_file({"other": rows[:3], "text_embeds": rows}, path / "rows.safetensors")
    return path / "rows.safetensors"


def pickled(rows, path):
    records = [{"id": row, "caption": "a", "embed": embed} for row, embed in enumerate(rows)]
    for chunk in range(13):
        with (path / f"chunk_{chunk}.pkl").open("wb") as file:
            pickle.dump(records[100 * chunk : 100 * chunk + 100], file)
    return path


def json_lines(rows, path):
    lines = [json.dumps({"id": str(i), "text_embeds": row.astype(float).tolist()}) for i, row in enumerate(rows)]
    (path / "rows.jsonl").write_text("\n".join(lines))
    return path / "rows.jsonl"


SOURCES = {
    "array": lambda rows, path: rows,
    "sliced array": lambda rows, path: np.repeat(rows, 2, axis=1)[:, ::2],
    "tensor": lambda rows, path: torch.from_numpy(rows),
    "dataset": lambda rows, path: as_dataset(rows),
    "list column of any length": lambda rows, path: as_dataset(rows, length=-1, dtype="float32"),
    "selected dataset": lambda rows, path: as_dataset(rows[::-1]).select(range(len(rows) - 1, -1, -1)),
    "folder": lambda rows, path: write_folder(rows, path / "texts"),
    "row groups": many_row_groups,
    "parquet file": lambda rows, path: many_row_groups(rows, path) / "data.parquet",
    "npy": npy,
    "safetensors": safetensors,
    "pickles": pickled,
    "json lines": json_lines,
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_gives_the_same_rows(name, rows, tmp_path):
    source = open_vectors(SOURCES[name](rows, tmp_path), "text_embeds", allow_pickle=True)
    assert (source.num_rows, source.embed_dim) == rows.shape
    read = np.concatenate(list(source.blocks(64)))
    np.testing.assert_array_equal(read.astype(np.float32), rows.astype(np.float32))
    if isinstance(source, vector_sets.TableVectors):
        tables, blocks = zip(*source.tables(), strict=True)
        np.testing.assert_array_equal(np.concatenate(blocks).astype(np.float32), rows.astype(np.float32))
        assert pa.concat_tables(tables).num_rows == len(rows)
        assert source.row_id(7) in ("t7", "7", "t1292")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_and_safetensors_of_any_float_type_are_read(dtype, rows, tmp_path):
    from safetensors.torch import save_file as save_tensors

    tensor = torch.from_numpy(rows).to(dtype)
    save_tensors({"x": tensor}, tmp_path / "x.safetensors")
    for source in (tensor, tmp_path / "x.safetensors"):
        read = np.concatenate(list(open_vectors(source).blocks()))
        np.testing.assert_array_equal(read.astype(np.float64), tensor.double().numpy())


def test_a_folder_says_which_encoder_made_its_vectors(rows, tmp_path):
    assert open_vectors(write_folder(rows, tmp_path / "texts"), "text_embeds").encoder == "e"


def test_a_published_folder_is_read_by_its_default_configuration(rows, tmp_path):
    card = """---
configs:
- config_name: other
  data_files: [{split: train, path: other/train-*.parquet}]
- config_name: first
  default: true
  data_files: [{split: train, path: first/train-*.parquet}]
---
"""
    (tmp_path / "README.md").write_text(card)
    for name, part in (("other", rows[:10]), ("first", rows)):
        (tmp_path / name).mkdir()
        pq.write_table(as_dataset(part).data.table, tmp_path / name / "train-00000-of-00001.parquet")
    assert open_vectors(tmp_path, "text_embeds").num_rows == len(datasets.load_dataset(str(tmp_path), split="train"))


def broken_npy(rows, path):
    data = npy(rows, path).read_bytes()
    (path / "rows.npy").write_bytes(data[: len(data) // 2])
    return path / "rows.npy"


def not_npy(rows, path):
    (path / "rows.npy").write_bytes(b"hello")
    return path / "rows.npy"


def broken_parquet(rows, path):
    (path / "rows.parquet").write_bytes(b"PAR1 and nothing more")
    return path / "rows.parquet"


def ragged(rows, path):
    vectors_ = [row.astype(float).tolist() for row in rows[:700]]
    vectors_[650] = vectors_[650][:-1]
    return datasets.Dataset.from_dict({"id": [f"t{i}" for i in range(700)], "text_embeds": vectors_})


UNREADABLE = {
    "one dimension": (lambda rows, path: rows[0], r"shape \[24\]"),
    "no rows": (lambda rows, path: rows[:0], r"shape \[0, 24\]"),
    "strings": (lambda rows, path: np.array([["a"]]), "expected numbers"),
    "no such path": (lambda rows, path: path / "missing", "no such file or folder"),
    "cut short": (broken_npy, "is cut short"),
    "not npy": (not_npy, "is not a .npy file"),
    "by columns": (lambda rows, path: npy(np.asfortranarray(rows), path), "by columns"),
    "no such tensor": (lambda rows, path: safetensors(rows, path).with_name("rows.safetensors"), "no tensor 'nothing'"),
    "no such column": (lambda rows, path: as_dataset(rows), "no column 'nothing'"),
    "not Parquet": (broken_parquet, "cannot be read as Parquet"),
    "ragged": (ragged, r"row 650 \(id 't650'\) has 23 dimensions .*expected 24"),
    "not lists": (lambda rows, path: as_dataset(rows), "holds string; expected lists"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_said_in_one_sentence(name, rows, tmp_path):
    make, words = UNREADABLE[name]
    column = "nothing" if name.startswith("no such") else "id" if name == "not lists" else "text_embeds"
    with pytest.raises(InputError, match=words) as error:
        list(open_vectors(make(rows, tmp_path), column).blocks())
    assert "\n" not in str(error.value)


def test_a_missing_vector_is_a_row_without_direction(rows):
    values = [row.astype(float).tolist() for row in rows[:10]]
    values[4] = None
    source = open_vectors(datasets.Dataset.from_dict({"text_embeds": values}), "text_embeds")
    _, bad = unit_rows(np.concatenate(list(source.blocks())))
    assert bad.tolist() == [4]


def test_unit_rows_finds_exactly_the_rows_without_direction():
    rows = np.eye(6, 8, dtype=np.float16) * 100
    rows[1], rows[2, 3], rows[4, 0] = 0, np.nan, np.inf
    for dtype in (np.float16, np.float32, np.float64):
        unit, bad = unit_rows(rows.astype(dtype))
        assert bad.tolist() == [1, 2, 4]
        np.testing.assert_allclose(np.linalg.norm(unit[[0, 3, 5]], axis=1), 1, atol=1e-6)


def test_parallel_map_keeps_order_and_passes_errors_on():
    assert list(parallel_map(lambda x: x * x, range(100), threads=4)) == [x * x for x in range(100)]
    with pytest.raises(ZeroDivisionError):
        list(parallel_map(lambda x: 1 / x, [2, 1, 0], threads=4))


def test_parallel_map_does_not_run_far_ahead_of_its_reader():
    started = []
    results = parallel_map(started.append, range(1000), threads=2)
    next(results)
    assert len(started) <= 10
