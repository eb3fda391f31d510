import json
from pathlib import Path

import numpy as np
import pytest
from small_datasets import captions, conversations, ids, released_records, vectors, write_released
from unicorn_hf.dataset_scripts.unicorn import UnicornBuilder, load_unicorn

from unicorn_hf import InputError
from unicorn_hf.data.dataset_folder import write_dataset


def test_both_configurations_come_from_the_released_files(tmp_path):
    folder = write_released(tmp_path / "released")
    pretrain = load_unicorn("unicorn-1.2m", folder, allow_pickle=True, cache_dir=tmp_path / "cache")
    instruction = load_unicorn("unicorn-471k-instruction", folder, allow_pickle=True, cache_dir=tmp_path / "cache")
    assert pretrain.column_names == ["id", "caption", "image_embeds"]
    assert instruction.column_names == ["id", "caption", "task", "messages", "image_embeds"]
    for dataset in (pretrain, instruction):
        assert dataset["id"][:] == ids()
        assert (np.array(dataset["image_embeds"][:], np.float16) == vectors()).all()
    assert instruction[5]["messages"][0] == {"role": "user", "content": "<image>\nHow many things?"}


def test_the_default_configuration_is_the_pretraining_one(tmp_path):
    builder = UnicornBuilder(data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    assert builder.config.name == "unicorn-1.2m"
    assert list(builder.builder_configs) == ["unicorn-1.2m", "unicorn-471k-instruction", "unicorn-preference"]


def test_the_info_has_sizes_and_splits(tmp_path):
    folder = write_released(tmp_path / "released")
    info = load_unicorn("unicorn-1.2m", folder, allow_pickle=True, cache_dir=tmp_path / "cache").info
    assert info.splits["train"].num_examples == 60
    assert info.dataset_size == info.splits["train"].num_bytes > 60 * 32
    assert info.features["image_embeds"].length == 16


def test_processes_share_the_row_groups_and_give_the_same_rows(tmp_path):
    step = tmp_path / "step"
    (step / "data").mkdir(parents=True)
    for index in range(2):
        shard = conversations().shard(2, index, contiguous=True)
        shard.to_parquet(step / "data" / f"train-{index:05d}-of-00002.parquet")
    vectors_of = write_dataset(captions(), tmp_path / "vectors", title="vectors")
    arguments = ("unicorn-471k-instruction", step)
    alone = load_unicorn(*arguments, embeddings=vectors_of, cache_dir=tmp_path / "1")
    together = load_unicorn(*arguments, embeddings=vectors_of, num_proc=2, cache_dir=tmp_path / "2")
    assert alone[:] == together[:] and len(alone) == 20


def test_a_changed_file_is_read_anew_and_an_unchanged_one_is_not(tmp_path):
    folder = write_released(tmp_path / "released")
    arguments = {"allow_pickle": True, "cache_dir": tmp_path / "cache"}
    first = load_unicorn("unicorn-1.2m", folder, **arguments).cache_files
    assert load_unicorn("unicorn-1.2m", folder, **arguments).cache_files == first
    records = released_records()
    records[0]["caption"] = "something else"
    (folder / "Pretrain.json").write_text(json.dumps(records))
    assert load_unicorn("unicorn-1.2m", folder, **arguments)[0]["caption"] == "something else"


def test_rejected_records_are_kept_beside_the_cache(tmp_path):
    records = released_records(62)
    records[5].pop("caption")
    folder = write_released(tmp_path / "released", records)
    dataset = load_unicorn("unicorn-1.2m", folder, allow_pickle=True, cache_dir=tmp_path / "cache")
    kept = Path(dataset.cache_files[0]["filename"]).parent / "rejected.jsonl"
    reasons = [json.loads(line)["reason"] for line in kept.read_text().splitlines()]
    assert sorted(reasons) == ["no caption", "no embedding", "no embedding"] and len(dataset) == 59


def test_released_text_without_vectors_has_no_vector_column(tmp_path):
    folder = write_released(tmp_path / "released")
    dataset = load_unicorn("unicorn-1.2m", folder / "Pretrain.json", cache_dir=tmp_path / "cache")
    assert dataset.column_names == ["id", "caption"]


def test_vectors_of_captions_are_named_so(tmp_path):
    folder = write_released(tmp_path / "released")
    arguments = {"allow_pickle": True, "cache_dir": tmp_path / "cache"}
    dataset = load_unicorn("unicorn-1.2m", folder, column="text_embeds", **arguments)
    assert dataset.column_names == ["id", "caption", "text_embeds"]


def test_it_streams(tmp_path):
    folder = write_released(tmp_path / "released")
    builder = UnicornBuilder(
        config_name="unicorn-471k-instruction", data_dir=str(folder), allow_pickle=True, cache_dir=str(tmp_path / "c")
    )
    assert [row["id"] for row in builder.as_streaming_dataset(split="train")] == ids()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "unicorn"}, "expected one of unicorn-1.2m, unicorn-471k-instruction"),
        ({"name": "unicorn-preference"}, "has no rows for unicorn-preference: expected shards of Arrow or Parquet"),
        ({"data_dir": None}, "needs data_dir"),
        ({"data_dir": "nowhere"}, "nowhere: no such file or folder"),
        ({"allow_pickle": False}, "--allow-pickle"),
        ({"column": "embeds"}, "expected one of text_embeds, image_embeds"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(tmp_path, arguments, message):
    folder = write_released(tmp_path / "released")
    arguments = {"name": "unicorn-1.2m", "data_dir": folder, "allow_pickle": True} | arguments
    with pytest.raises(InputError, match=message):
        load_unicorn(**arguments, cache_dir=tmp_path / "cache")


def test_nothing_is_left_behind_when_a_file_is_damaged(tmp_path):
    folder = write_released(tmp_path / "released")
    text = (folder / "Pretrain.json").read_text()
    (folder / "Pretrain.json").write_text(text[: len(text) // 2])
    with pytest.raises(InputError, match="is damaged after record"):
        load_unicorn("unicorn-1.2m", folder, allow_pickle=True, cache_dir=tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix in (".arrow", ".f16")]
