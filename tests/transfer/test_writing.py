"""What `apply` writes: datasets and .npy files that are whole or not there."""

import os
import pickle

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from unicorn_hf import InputError
from unicorn_hf.data.provenance import read_provenance
from unicorn_hf.transfer import ReAlign, writing


@pytest.fixture
def transfer(text, image):
    return ReAlign.fit(text, image, encoder="sandbox")


def test_a_folder_gains_the_column_and_keeps_the_rest(transfer, text, make_folder, tmp_path):
    transfer.apply(make_folder(text), tmp_path / "out")
    moved = datasets.load_dataset(str(tmp_path / "out"), split="train")
    source = datasets.load_dataset(str(make_folder(text, encoder="again")), split="train")
    assert moved.column_names == ["id", "caption", "text_embeds", "image_embeds"]
    assert moved.features == {**source.features, "image_embeds": datasets.List(datasets.Value("float16"), length=32)}
    assert moved.remove_columns("image_embeds")[:] == source[:]
    np.testing.assert_array_equal(np.array(moved["image_embeds"][:]), transfer.apply(text).astype(np.float16))
    assert read_provenance(tmp_path / "out") == {
        "text_embeds": {"encoder": "sandbox", "embed_dim": 32},
        "image_embeds": {"encoder": "sandbox", "embed_dim": 32, "transfer": "realign"},
    }


def test_a_dataset_in_memory_is_written_as_its_folder_is(transfer, text, make_dataset, make_folder, tmp_path):
    transfer.apply(make_dataset(text), tmp_path / "a")
    transfer.apply(make_folder(text), tmp_path / "b")
    a, b = (datasets.load_dataset(str(tmp_path / name), split="train") for name in "ab")
    assert a[:] == b[:]
    assert a.features == b.features


def test_many_shards_are_written_whole_and_in_order(transfer, text, make_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "SHARD_BYTES", 1)
    pq.write_table(make_dataset(text).data.table, tmp_path / "rows.parquet", row_group_size=400)
    transfer.apply(tmp_path / "rows.parquet", tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out" / "data").iterdir())
    assert names == [f"train-{index:05d}-of-00004.arrow" for index in range(4)]
    moved = datasets.load_dataset(str(tmp_path / "out"), split="train")
    assert moved["id"][:] == [f"a{row}" for row in range(len(text))]
    np.testing.assert_array_equal(np.array(moved["image_embeds"][:]), transfer.apply(text).astype(np.float16))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_npy_in_gives_npy_out(dtype, transfer, text, tmp_path):
    np.save(tmp_path / "text.npy", text.astype(dtype))
    transfer.apply(tmp_path / "text.npy", tmp_path / "moved.npy")
    moved = np.load(tmp_path / "moved.npy")
    assert moved.dtype == (np.float16 if dtype == np.float16 else np.float32)
    np.testing.assert_array_equal(moved, transfer.apply(text.astype(dtype)).astype(moved.dtype))


def test_a_column_may_go_to_npy_and_bare_vectors_to_a_folder(transfer, text, make_folder, tmp_path):
    transfer.apply(make_folder(text), tmp_path / "moved.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "moved.npy"), transfer.apply(text).astype(np.float16))
    np.save(tmp_path / "text.npy", text)
    transfer.apply(tmp_path / "text.npy", tmp_path / "out", out_column="moved")
    dataset = datasets.load_dataset(str(tmp_path / "out"), split="train")
    assert dataset.column_names == ["id", "moved"]
    assert dataset["id"][:] == [str(row) for row in range(len(text))]


def test_released_pickles_keep_ids_and_captions(transfer, text, tmp_path):
    records = [{"id": f"00{row}", "caption": f"caption {row}", "embed": embed} for row, embed in enumerate(text)]
    (tmp_path / "text.pkl").write_bytes(pickle.dumps(records))
    transfer.apply(tmp_path / "text.pkl", tmp_path / "out", allow_pickle=True)
    dataset = datasets.load_dataset(str(tmp_path / "out"), split="train")
    assert dataset[3]["id"] == "003"
    assert dataset[3]["caption"] == "caption 3"
    np.testing.assert_array_equal(np.array(dataset["image_embeds"][:]), transfer.apply(text).astype(np.float16))


def test_a_broken_row_leaves_nothing_behind(transfer, text, make_folder, tmp_path):
    text[1400] = np.nan
    source = make_folder(text)
    for output in ("moved.npy", "out"):
        with pytest.raises(InputError, match=r"row 1400 \(id 'a1400'\)"):
            transfer.apply(source, tmp_path / output)
    assert sorted(path.name for path in tmp_path.iterdir()) == [source.name]


def test_broken_rows_are_left_out_and_named_on_demand(transfer, text, make_folder, tmp_path, caplog):
    expected = np.delete(transfer.apply(text), [2, 1400], axis=0).astype(np.float16)
    text[2], text[1400] = 0, np.nan
    source = make_folder(text)
    transfer.apply(source, tmp_path / "moved.npy", skip_non_finite=True)
    np.testing.assert_array_equal(np.load(tmp_path / "moved.npy"), expected)
    assert "row 2 (id 'a2'), row 1400 (id 'a1400')" in caplog.text
    transfer.apply(source, tmp_path / "out", skip_non_finite=True)
    dataset = datasets.load_dataset(str(tmp_path / "out"), split="train")
    assert not {"a2", "a1400"} & set(dataset["id"])
    np.testing.assert_array_equal(np.array(dataset["image_embeds"][:]), expected)


def test_an_output_that_exists_is_not_touched(transfer, text, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(InputError, match="not an empty folder"):
        transfer.apply(_npy(text, tmp_path), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def _npy(rows, path):
    np.save(path / "text.npy", rows)
    return path / "text.npy"


@pytest.mark.parametrize("output", ["moved.npy", "moved"])
def test_a_set_without_a_usable_row_is_refused(output, text, image, tmp_path):
    transfer = ReAlign.fit(text, image)
    np.save(tmp_path / "zeros.npy", np.zeros((3, text.shape[1]), np.float16))
    with pytest.raises(InputError, match=r"zeros\.npy: every row is NaN, Inf or zero"):
        transfer.apply(tmp_path / "zeros.npy", tmp_path / output, skip_non_finite=True)
    assert os.listdir(tmp_path) == ["zeros.npy"]


def test_a_block_without_a_usable_row_is_left_out(text, image, tmp_path):
    transfer, rows = ReAlign.fit(text, image), np.zeros((1100, text.shape[1]), np.float16)
    rows[-1] = 1
    np.save(tmp_path / "rows.npy", rows)
    transfer.apply(tmp_path / "rows.npy", tmp_path / "moved.npy", skip_non_finite=True)
    transfer.apply(tmp_path / "rows.npy", tmp_path / "moved", skip_non_finite=True)
    assert len(np.load(tmp_path / "moved.npy")) == len(datasets.load_dataset(str(tmp_path / "moved"))["train"]) == 1
