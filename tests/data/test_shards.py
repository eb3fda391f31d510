import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Features, Value, load_dataset
from small_datasets import captions, vectors
from unicorn_hf.dataset_scripts.sources import PRETRAIN, make_features

from unicorn_hf import InputError
from unicorn_hf.data.shards import as_lists, fingerprint, with_plain_vectors, write_shards
from unicorn_hf.data.tables import open_tables


def long_captions(num_rows, embed_dim=64):
    """A table whose vectors take most of the room, in pieces of 100 rows, and its features."""
    rng = np.random.default_rng(0)
    features = make_features(PRETRAIN, {"image_embeds": embed_dim})
    embeds = as_lists(rng.standard_normal((num_rows, embed_dim)).astype(np.float16))
    columns = [[f"{row}" for row in range(num_rows)], [f"caption {row}" for row in range(num_rows)], embeds]
    table = pa.table(columns, schema=features.arrow_schema)
    return [table.slice(start, 100) for start in range(0, num_rows, 100)], features


@pytest.mark.parametrize("suffix", [".arrow", ".parquet"])
def test_shards_are_named_by_their_number_and_hold_every_row_once(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr("unicorn_hf.data.shards.ROW_GROUP_BYTES", 20_000)
    monkeypatch.setattr("unicorn_hf.data.shards.BATCH_ROWS", 100)
    tables, features = long_captions(3000)
    folder = tmp_path / "config"
    shards = write_shards(tables, folder, features.arrow_schema, shard_size=100_000, suffix=suffix)
    assert len(shards.files) > 3 and shards.num_rows == 3000
    names = [f"train-{index:05d}-of-{len(shards.files):05d}{suffix}" for index in range(len(shards.files))]
    assert sorted(file.name for file in folder.iterdir()) == names
    assert all(file.stat().st_size < 150_000 for file in shards.files)
    rows = open_tables(shards.files, "the shards")
    assert rows.ids() == [str(row) for row in range(3000)]
    assert rows.row_id(2345) == "2345"
    assert shards.fingerprint == fingerprint(shards.files)


def test_arrow_shards_are_loaded_and_streamed_by_datasets(tmp_path):
    tables, features = long_captions(2500)
    write_shards(tables, tmp_path / "data", features.arrow_schema, shard_size=100_000)
    config = {"split": "train", "path": "data/train-*.arrow"}
    card = json.dumps({"configs": [{"config_name": "default", "data_files": [config]}]})
    (tmp_path / "README.md").write_text(f"---\n{card}\n---\n")
    for streaming in (False, True):
        rows = load_dataset(str(tmp_path), split="train", streaming=streaming)
        assert rows.features == features
        assert [row["id"] for row in rows] == [str(row) for row in range(2500)]


@pytest.mark.parametrize("kept", [0, 7, 1000, -1, -8, -200])
def test_an_arrow_shard_that_is_cut_short_is_refused(kept, tmp_path):
    tables, features = long_captions(2500)
    (file,) = write_shards(tables, tmp_path, features.arrow_schema).files
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"train-00000-of-00001\.arrow: cannot be read as Arrow .*write it again"):
        open_tables([file], "the shard")


def test_vectors_are_plain_lists_and_text_is_compressed_with_a_page_index(tmp_path):
    tables, features = long_captions(300)
    (file,) = write_shards(tables, tmp_path / "config", features.arrow_schema, suffix=".parquet").files
    group = pq.read_metadata(file).row_group(0)
    columns = {group.column(index).path_in_schema: group.column(index) for index in range(group.num_columns)}
    vectors_column, text = columns["image_embeds.list.element"], columns["caption"]
    assert (vectors_column.compression, text.compression) == ("UNCOMPRESSED", "ZSTD")
    assert "RLE_DICTIONARY" not in vectors_column.encodings and vectors_column.statistics is None
    assert vectors_column.has_offset_index and text.has_offset_index and text.has_column_index
    assert pq.read_schema(file).field("image_embeds").type.list_size == 64
    assert features == Features.from_arrow_schema(pq.read_schema(file))


def test_the_schema_lets_no_vector_be_null():
    schema = with_plain_vectors(captions().features.arrow_schema)
    assert not schema.field("image_embeds").nullable and not schema.field("image_embeds").type.value_field.nullable
    assert schema.field("caption").nullable


def test_one_row_more_leaves_most_of_the_file_as_it_was(tmp_path):
    """Content-defined chunking: the Hub stores, and a second push sends, what has changed."""
    rng = random.Random(0)
    texts = [" ".join(f"{rng.getrandbits(40):x}" for _ in range(60)) for _ in range(6000)]
    features = Features({"caption": Value("string")})

    def write(name, rows):
        table = pa.table({"caption": rows}, schema=features.arrow_schema)
        return write_shards([table], tmp_path / name, features.arrow_schema, suffix=".parquet").files[0].read_bytes()

    before, after = write("before", texts), write("after", ["one more", *texts])
    pieces = [before[start : start + 64] for start in range(0, len(before) - 64, 4096)]
    assert sum(piece in after for piece in pieces) > 0.6 * len(pieces)


def test_vectors_survive_bit_by_bit(tmp_path):
    dataset = captions()
    shards = write_shards([dataset.data.table], tmp_path / "c", dataset.features.arrow_schema, suffix=".parquet")
    column = pq.read_table(shards.files[0])["image_embeds"].combine_chunks()
    assert (column.flatten().to_numpy().reshape(60, -1) == vectors()).all()
