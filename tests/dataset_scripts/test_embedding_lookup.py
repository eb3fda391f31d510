import json
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import concatenate_datasets
from safetensors.torch import save_file
from small_datasets import EMBED_DIM, captions, ids, vectors, write_released
from unicorn_hf.dataset_scripts.embedding_lookup import EmbeddingLookup

from unicorn_hf import InputError
from unicorn_hf.data.dataset_folder import write_dataset


def save_matrix(folder, name, listed=False, **kind):
    if name.endswith(".npy"):
        np.save(folder / name, vectors().astype(kind.get("dtype", np.float16)))
    else:
        save_file({"embeds": torch.from_numpy(vectors()).to(kind.get("dtype", torch.float16))}, folder / name)
    stem = name.rsplit(".", 1)[0]
    if listed:
        (folder / f"{stem}.ids.json").write_text(json.dumps(ids()))
    else:
        (folder / f"{stem}.ids.txt").write_text("\n".join(ids()))
    return folder / name


def save_by_id(folder):
    save_file(dict(zip(ids(), torch.from_numpy(vectors()).clone(), strict=True)), folder / "by_id.safetensors")
    return folder / "by_id.safetensors"


SOURCES = {
    "npy": lambda folder: save_matrix(folder, "e.npy"),
    "npy of float32": lambda folder: save_matrix(folder, "e.npy", dtype=np.float32, listed=True),
    "safetensors": lambda folder: save_matrix(folder, "e.safetensors"),
    "safetensors by id": save_by_id,
    "parquet": lambda folder: write_dataset(captions(), folder / "step", title="captions"),
    "pickles": lambda folder: write_released(folder / "released") / "embeddings",
    "a dataset": lambda folder: captions(),
}


def open_lookup(source):
    if isinstance(source, type(captions(1))):
        return EmbeddingLookup.from_dataset(source)
    return EmbeddingLookup.open(source, allow_pickle=True)


@pytest.mark.parametrize("kind", SOURCES)
def test_vectors_are_found_by_id_and_by_row(tmp_path, kind):
    lookup = open_lookup(SOURCES[kind](tmp_path))
    assert len(lookup) == 60 and lookup.embed_dim == EMBED_DIM
    assert (lookup["000007"] == vectors()[7]).all()
    assert (lookup[["000059", "000000", "000031"]] == vectors()[[59, 0, 31]]).all()
    order = lookup.find(ids())
    assert (lookup.rows(order) == vectors()).all()
    assert (lookup.row(int(order[12])) == vectors()[12]).all()


def test_bfloat16_is_read_too(tmp_path):
    lookup = EmbeddingLookup.open(save_matrix(tmp_path, "e.safetensors", dtype=torch.bfloat16))
    np.testing.assert_allclose(lookup["000003"], vectors()[3], atol=4e-3)


def test_an_unknown_id_is_a_key_error_that_names_it():
    lookup = EmbeddingLookup.from_dataset(captions())
    assert "000001" in lookup and "1" not in lookup
    with pytest.raises(KeyError, match="has no id '1'"):
        lookup["1"]
    with pytest.raises(KeyError, match="has no id 'nobody'"):
        lookup[["000001", "nobody"]]
    assert lookup.find(["nobody", "000001"]).tolist() == [-1, 1]


def test_it_agrees_with_a_dict_on_many_ids():
    rng = random.Random(0)
    keys = [f"{rng.getrandbits(48):x}" for _ in range(3000)]
    lookup = EmbeddingLookup.from_dataset(captions(3000).remove_columns("id").add_column("id", keys))
    rows = dict(zip(keys, range(3000), strict=True))
    asked = [rng.choice(keys) if rng.random() < 0.7 else f"{rng.getrandbits(48):x}" for _ in range(2000)]
    assert lookup.find(asked).tolist() == [rows.get(key, -1) for key in asked]


def test_numbers_are_matched_as_strings(tmp_path):
    lookup = EmbeddingLookup.from_dataset(captions(3).remove_columns("id").add_column("id", [7, 8, 9]))
    assert (lookup["8"] == vectors(3)[1]).all() and (lookup[8] == vectors(3)[1]).all()


def test_selected_and_concatenated_rows_are_found():
    dataset = concatenate_datasets([captions().select([5, 50, 2]), captions().select(range(10, 20))])
    lookup = EmbeddingLookup.from_dataset(dataset)
    assert (lookup["000050"] == vectors()[50]).all() and (lookup.row(4) == vectors()[11]).all()
    assert (lookup[["000019", "000005"]] == vectors()[[19, 5]]).all()


@pytest.mark.parametrize("kind", ["npy", "safetensors by id", "a dataset"])
def test_a_lookup_travels_to_another_process(tmp_path, kind):
    lookup = pickle.loads(pickle.dumps(open_lookup(SOURCES[kind](tmp_path))))
    assert (lookup["000007"] == vectors()[7]).all()
    assert (lookup[["000059", "000031"]] == vectors()[[59, 31]]).all()


def test_an_id_twice_is_an_error(tmp_path):
    path = save_matrix(tmp_path, "e.npy")
    path.with_suffix(".ids.txt").write_text("\n".join([*ids(59), "000003"]))
    with pytest.raises(InputError, match=r"e\.npy: rows 3 and 59 have the same id"):
        EmbeddingLookup.open(path)


@pytest.mark.parametrize("text", [None, "one\ntwo"])
def test_rows_need_an_id_each(tmp_path, text):
    path = save_matrix(tmp_path, "e.npy")
    if text is None:
        path.with_suffix(".ids.txt").unlink()
    else:
        path.with_suffix(".ids.txt").write_text(text)
    with pytest.raises(InputError, match="expected e.ids.txt" if text is None else "has 60 rows, but 2 ids"):
        EmbeddingLookup.open(path)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc, which tells a process's memory")
def test_random_rows_of_a_large_file_do_not_pile_up_in_memory(tmp_path):
    rows = np.random.default_rng(0).integers(0, 1 << 10, (40_000, 1280), np.uint16).view(np.float16)
    np.save(tmp_path / "e.npy", rows)
    (tmp_path / "e.ids.txt").write_text("\n".join(ids(40_000)))
    lookup = EmbeddingLookup.open(tmp_path / "e.npy")
    order = np.random.default_rng(1).permutation(40_000)

    def resident_mb():
        return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1024

    before = resident_mb()
    for start in range(0, 40_000, 1000):
        assert (lookup.rows(order[start : start + 1000]) == rows[order[start : start + 1000]]).all()
    assert resident_mb() - before < 0.3 * rows.nbytes / 2**20


def test_pickles_are_read_only_when_allowed(tmp_path):
    folder = write_released(tmp_path / "released") / "embeddings"
    with pytest.raises(InputError, match="--allow-pickle"):
        EmbeddingLookup.open(folder)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_hostile_pickle_runs_nothing(tmp_path):
    records = [{"id": "1", "embed": vectors(1)[0], "caption": Hostile(tmp_path / "was-here")}]
    (tmp_path / "chunk.pkl").write_bytes(pickle.dumps(records))
    with pytest.raises(InputError, match="only numpy arrays, dicts, lists, strings and numbers"):
        EmbeddingLookup.open(tmp_path / "chunk.pkl", allow_pickle=True)
    assert not (tmp_path / "was-here").exists()
