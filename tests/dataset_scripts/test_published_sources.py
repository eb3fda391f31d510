import numpy as np
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_datasets import EMBED_DIM, captions, conversations, ids, vectors, write_released
from unicorn_hf.dataset_scripts.released_json import Rejected
from unicorn_hf.dataset_scripts.sources import (
    INSTRUCTION,
    PRETRAIN,
    ReleasedSource,
    TableSource,
    find_embeddings,
    open_source,
)

from unicorn_hf import InputError
from unicorn_hf.data.dataset_folder import write_dataset
from unicorn_hf.data.shards import write_shards


def rows_of(source):
    rejected = Rejected("nothing is rejected here", "")
    return [row for table in source.tables(source.shards, rejected) for row in table.to_pylist()]


def step_folder(tmp_path, dataset=None, shards=3):
    """A step's output of several shards."""
    dataset = captions() if dataset is None else dataset
    folder = tmp_path / "step"
    (folder / "data").mkdir(parents=True)
    for index in range(shards):
        name = f"train-{index:05d}-of-{shards:05d}.parquet"
        dataset.shard(shards, index, contiguous=True).to_parquet(folder / "data" / name)
    return folder


def test_a_steps_shards_give_their_rows_in_order(tmp_path):
    source = TableSource(PRETRAIN, step_folder(tmp_path))
    rows = rows_of(source)
    assert [row["id"] for row in rows] == ids() and source.num_rows == 60
    assert (np.array([row["image_embeds"] for row in rows], np.float16) == vectors()).all()


def test_columns_that_are_not_published_are_left_out(tmp_path):
    dataset = captions(text_embeds=vectors(seed=1)).add_column("seed", ["a"] * 60)
    source = TableSource(PRETRAIN, write_dataset(dataset, tmp_path / "step", title="step"))
    assert list(source.features) == ["id", "caption", "text_embeds", "image_embeds"]
    assert list(rows_of(source)[0]) == list(source.features)


@pytest.mark.parametrize("embeddings", ["a dataset", "a folder"])
def test_conversations_take_their_vectors_by_id(tmp_path, embeddings):
    vectors_of = captions() if embeddings == "a dataset" else step_folder(tmp_path)
    for row in rows_of(TableSource(INSTRUCTION, conversations(), vectors_of)):
        assert (np.array(row["image_embeds"], np.float16) == vectors()[int(row["id"])]).all()
        assert row["messages"][1]["content"] == f"{int(row['id'])} of them"


def test_plain_lists_of_float32_and_polars_strings_are_taken(tmp_path):
    table = {"id": ids(), "caption": ["x"] * 60, "image_embeds": vectors().astype(np.float32).tolist()}
    polars.DataFrame(table).write_parquet(tmp_path / "train-00000-of-00001.parquet")
    source = TableSource(PRETRAIN, tmp_path)
    assert source.features["image_embeds"].length == EMBED_DIM
    assert (np.array([row["image_embeds"] for row in rows_of(source)], np.float16) == vectors()).all()


def test_shards_with_their_columns_in_another_order_are_joined_by_name(tmp_path):
    folder = step_folder(tmp_path)
    shard = folder / "data" / "train-00001-of-00003.parquet"
    table = pq.read_table(shard)
    pq.write_table(table.select(table.column_names[::-1]), shard)
    assert rows_of(TableSource(PRETRAIN, folder)) == rows_of(TableSource(PRETRAIN, captions()))


def test_vectors_may_be_lists_of_any_kind_from_shard_to_shard(tmp_path):
    folder = step_folder(tmp_path)
    for index, kind in enumerate((pa.list_(pa.float32()), pa.large_list(pa.float16()))):
        shard = folder / "data" / f"train-0000{index}-of-00003.parquet"
        table = pq.read_table(shard)
        place = table.column_names.index("image_embeds")
        pq.write_table(table.set_column(place, "image_embeds", table.column(place).cast(kind)), shard)
    assert rows_of(TableSource(PRETRAIN, folder)) == rows_of(TableSource(PRETRAIN, captions()))


def test_a_parent_of_several_steps_is_refused_by_their_names(tmp_path):
    for name in ("first", "second"):
        write_dataset(captions(), tmp_path / name, title=name)
    with pytest.raises(InputError, match="2 datasets: first, second"):
        open_source(PRETRAIN, tmp_path)


def test_a_conversation_without_a_vector_is_an_error():
    with pytest.raises(InputError, match=r"id '000030' is not in .*, so it has no image_embeds"):
        rows_of(TableSource(INSTRUCTION, conversations(), captions().select(range(30))))


def corrupt(folder):
    shard = folder / "data" / "train-00001-of-00003.parquet"
    content = bytearray(shard.read_bytes())
    content[200:600] = b"\xff" * 400
    shard.write_bytes(content)


def cut_short(folder):
    shard = folder / "data" / "train-00001-of-00003.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])


def change_schema(folder):
    shard = folder / "data" / "train-00002-of-00003.parquet"
    table = pq.read_table(shard)
    longer = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(len(table) * 8, np.float16)), 8)
    pq.write_table(table.set_column(2, "image_embeds", longer), shard)


def drop_caption(folder):
    for shard in (folder / "data").iterdir():
        pq.write_table(pq.read_table(shard).drop_columns("caption"), shard)


def drop_caption_of_one(folder):
    shard = folder / "data" / "train-00002-of-00003.parquet"
    pq.write_table(pq.read_table(shard).drop_columns("caption"), shard)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (corrupt, r"train-00001-of-00003\.parquet: cannot be read as Parquet"),
        (cut_short, r"train-00001-of-00003\.parquet: cannot be read as Parquet"),
        (change_schema, r"train-00002-of-00003\.parquet: its schema is not that of .*'image_embeds' holds"),
        (
            drop_caption_of_one,
            r"train-00002-of-00003\.parquet: lacks the column 'caption' compared to .*train-00000",
        ),
        (drop_caption, r"step: has no column 'caption'; its columns are id, image_embeds"),
        (lambda folder: (folder / "data" / "train-00000-of-00003.parquet").unlink(), "holds 2 of 3 shards"),
    ],
)
def test_a_damaged_folder_is_told_by_file(tmp_path, harm, message):
    folder = step_folder(tmp_path)
    harm(folder)
    with pytest.raises(InputError, match=message):
        rows_of(TableSource(PRETRAIN, folder))


def test_a_wrong_bit_in_a_published_vector_is_found(tmp_path):
    dataset = captions()
    schema = dataset.features.arrow_schema
    (shard,) = write_shards([dataset.data.table], tmp_path / PRETRAIN, schema, suffix=".parquet").files
    content = shard.read_bytes()
    place = content.index(vectors()[30].tobytes()) + 5
    shard.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(InputError, match=r"train-00000-of-00001\.parquet: cannot be read as Parquet .*write it again"):
        rows_of(TableSource(PRETRAIN, tmp_path))


def with_value(column, row, value):
    table = captions().to_dict()
    table[column][row] = value
    return table


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (with_value("caption", 7, None), "the row with id '000007' has no caption"),
        (with_value("image_embeds", 7, [0.0] * 5), "image_embeds of id '000007' have 5 dimensions; expected 16"),
        (with_value("image_embeds", 7, None), "image_embeds of id '000007' have no dimensions"),
        (with_value("image_embeds", 7, [float("nan")] * EMBED_DIM), "id '000007' hold NaN or Inf"),
        (with_value("image_embeds", 7, [1e6] * EMBED_DIM), "id '000007' hold NaN or Inf in float16"),
    ],
)
def test_a_wrong_row_is_told_by_id(tmp_path, table, message):
    schema = pa.schema({"id": pa.string(), "caption": pa.string(), "image_embeds": pa.list_(pa.float32())})
    pq.write_table(pa.table(table, schema=schema), tmp_path / "train-00000-of-00001.parquet")
    with pytest.raises(InputError, match=message):
        rows_of(TableSource(PRETRAIN, tmp_path))


def test_messages_of_another_form_are_an_error(tmp_path):
    rows = conversations().remove_columns("messages").add_column("messages", ["Hi"] * 20)
    with pytest.raises(InputError, match=r"'messages' holds string; expected List\(\{'role'"):
        rows_of(TableSource(INSTRUCTION, rows, captions()))


def test_released_files_and_vectors_are_found_by_name(tmp_path):
    folder = write_released(tmp_path / "snapshot" / "deep")
    source = open_source(INSTRUCTION, tmp_path / "snapshot", allow_pickle=True)
    assert isinstance(source, ReleasedSource) and source.files == [folder / "Instruction.json"]
    assert source.lookup.name == str(folder / "embeddings")


def test_what_was_found_and_what_was_expected_is_said(tmp_path):
    (tmp_path / "captions.json").write_text("[]")
    with pytest.raises(InputError, match=r"expected a JSON file with 'pretrain' or '1.2m' .* found captions\.json"):
        open_source(PRETRAIN, tmp_path)
    for name in ("Pretrain.json", "pretrain_v2.json"):
        (tmp_path / name).write_text("[]")
    with pytest.raises(InputError, match=r"several files for unicorn-1\.2m \(Pretrain\.json, pretrain_v2\.json\)"):
        open_source(PRETRAIN, tmp_path)


def test_vectors_in_two_places_have_to_be_named(tmp_path):
    folder = write_released(tmp_path / "released")
    np.save(folder / "more.npy", vectors())
    with pytest.raises(InputError, match=r"vectors in several places .*--embeddings"):
        find_embeddings(folder)
