import json
import os
import re
import string

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from unicorn_hf import InputError
from unicorn_hf.data.data_files import find_data_files, is_hub_id, read_card
from unicorn_hf.data.dataset_folder import write_dataset
from unicorn_hf.data.provenance import read_provenance
from unicorn_hf.data.sources import read_dataset

CARD = "---\nconfigs:\n- config_name: default\n  data_files: {}\n---\n"
few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
file_names = st.text(string.ascii_letters + string.digits + " []*?!#%&'(){}+,;=@^~_-.é\n", min_size=1, max_size=12)


def rows(count: int, caption: str = "a dog") -> Dataset:
    return Dataset.from_dict({"id": [str(row) for row in range(count)], "caption": [caption] * count})


def write_lines(path, texts) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"caption": text}) + "\n" for text in texts))


def test_folders_of_one_name_with_cards_of_one_form_are_told_apart(tmp_path):
    for where, count in (("first", 120), ("second", 60)):
        folder = tmp_path / where / "captions"
        folder.mkdir(parents=True)
        rows(count, where).to_parquet(folder / "rows.parquet")
        (folder / "README.md").write_text(CARD.format("rows.parquet"))
    for where, count in (("first", 120), ("second", 60)):
        assert read_dataset(tmp_path / where / "captions")["caption"][:] == [where] * count


@pytest.mark.parametrize("name", ["rows.txt", "rows.jsonl", "rows.csv"])
def test_a_file_written_anew_is_read_anew_though_its_size_and_time_are_the_same(tmp_path, name):
    head = {"rows.txt": "{}\n", "rows.jsonl": '{{"text": "{}"}}\n', "rows.csv": "text\n{}\n"}[name]
    for text in ("red", "tan"):
        (tmp_path / name).write_text(head.format(text))
        os.utime(tmp_path / name, (10**9, 10**9))
        for source in (tmp_path / name, tmp_path):
            assert read_dataset(source)["text"][:] == [text]


def test_a_rewritten_shard_is_read_anew(tmp_path):
    for caption in ("a dog", "a cat"):
        rows(3, caption).to_parquet(tmp_path / "rows.parquet")
        assert read_dataset(tmp_path)["caption"][:] == [caption] * 3


@pytest.mark.parametrize(
    "name",
    ["questions", "photos/", "./photos", "../photos/cats", "~/photos", "/photos", "a/b/c", "org/rows.jsonl", "a*"],
)
def test_what_is_no_org_and_name_is_never_asked_of_the_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("the Hub was asked"))
    assert not is_hub_id(name) and read_provenance(name) == {}
    with pytest.raises(InputError, match="no such file or folder"):
        read_dataset(name)


def test_a_name_in_a_folder_that_is_there_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("data/captions") and is_hub_id("org/Llama-3.1") and is_hub_id("org/c4.en")
    (tmp_path / "data").mkdir()
    assert not is_hub_id("data/captions")


def test_a_parent_of_several_datasets_is_refused_by_their_names(tmp_path):
    for name in ("captions", "conversations", "images"):
        write_dataset(rows(3), tmp_path / name, title=name)
    with pytest.raises(InputError, match="3 datasets: captions, conversations, images"):
        read_dataset(tmp_path)
    write_lines(tmp_path / "captions.jsonl", ["x"])
    with pytest.raises(InputError, match=r"4 datasets: \., captions"):
        read_dataset(tmp_path)


def test_a_folder_of_two_formats_is_refused_by_their_files(tmp_path):
    write_lines(tmp_path / "rows.jsonl", ["x"])
    rows(3).to_parquet(tmp_path / "more.parquet")
    with pytest.raises(InputError, match=r"more\.parquet, rows\.jsonl"):
        read_dataset(tmp_path)
    (tmp_path / "README.md").write_text(CARD.format('["rows.jsonl", "more.parquet"]'))
    with pytest.raises(InputError, match=r"more\.parquet, rows\.jsonl"):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "more.jsonl.gz",
        "more.csv.ZST",
        "more.json.zip",
        "more.tsv",
        "deeper/more.ndjson",
        "more.feather",
        "more.xlsx",
        "more.tsv.gz",
        "more.jsonl.zstd",
        "more.pq",
    ],
)
@pytest.mark.parametrize("beside", [True, False])
def test_rows_that_cannot_be_read_are_never_left_out_of_a_folder(name, beside, tmp_path):
    (tmp_path / "deeper").mkdir()
    (tmp_path / name).write_bytes(b"x")
    (tmp_path / "images.tar.gz").write_bytes(b"x")
    if beside:
        write_lines(tmp_path / "rows.jsonl", ["x"])
    with pytest.raises(InputError, match=rf"holds {re.escape(name)}, which cannot be read; unpack"):
        read_dataset(tmp_path)
    (tmp_path / name).rename(tmp_path / "deeper" / "notes.log")
    if beside:
        assert len(read_dataset(tmp_path)) == 1


@pytest.mark.parametrize("card", [None, '"**"', "imgs"])
@pytest.mark.parametrize("name", ["metadata.jsonl.gz", "Metadata.tsv", "captions.csv.zst"])
def test_rows_about_images_that_cannot_be_read_are_never_left_out(name, card, tmp_path):
    (tmp_path / "imgs").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "imgs" / "a.png")
    (tmp_path / "imgs" / "masks.zip").write_bytes(b"x")
    if card:
        (tmp_path / "README.md").write_text(CARD.format(card))
    assert len(read_dataset(tmp_path)) == 1
    (tmp_path / "imgs" / name).write_bytes(b"x")
    with pytest.raises(InputError, match=rf"holds imgs/{re.escape(name)}, which cannot be read; unpack"):
        read_dataset(tmp_path)


def test_a_card_s_pattern_does_not_mean_the_card(tmp_path):
    write_lines(tmp_path / "rows.jsonl", ["x"])
    (tmp_path / "README.md").write_text(CARD.format('"*"'))
    assert len(read_dataset(tmp_path)) == 1


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("data_files: []", "its data_files name no file"),
        ("data_files: {}", "its data_files name no file"),
        ("data_dir: nope", "names the data_dir 'nope', but there is no such folder"),
    ],
)
def test_a_card_that_names_nothing_is_refused(entry, message, tmp_path):
    write_lines(tmp_path / "rows.jsonl", ["x"])
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  {entry}\n---\n")
    with pytest.raises(InputError, match=rf"README\.md: {message}"):
        read_dataset(tmp_path)


def test_files_called_for_a_split_beside_others_are_refused(tmp_path):
    write_lines(tmp_path / "old train.jsonl", ["x"])
    write_lines(tmp_path / "cats.jsonl", ["y"])
    with pytest.raises(InputError, match=r"called for a split \(old train.jsonl\) and some are not \(cats.jsonl\)"):
        read_dataset(tmp_path)


def test_splits_are_read_by_the_names_of_files_and_folders(tmp_path):
    write_lines(tmp_path / "files" / "train-00000-of-00001.jsonl", ["a"])
    write_lines(tmp_path / "files" / "squad-test.jsonl", ["b"])
    write_lines(tmp_path / "folders" / "train" / "x.jsonl", ["a"])
    write_lines(tmp_path / "folders" / "test" / "x.jsonl", ["b"])
    for folder in ("files", "folders"):
        assert read_dataset(tmp_path / folder)["caption"][:] == ["a"]
        assert read_dataset(tmp_path / folder, split="test")["caption"][:] == ["b"]
        assert read_dataset(tmp_path / folder, split="train+test[:1]")["caption"][:] == ["a", "b"]
        with pytest.raises(InputError, match="no split 'validation'; its splits are"):
            read_dataset(tmp_path / folder, split="validation")


def test_a_card_says_configurations_splits_and_how_files_are_read(tmp_path):
    write_lines(tmp_path / "one.jsonl", ["a"])
    (tmp_path / "two.csv").write_text("id;caption\n0012;b\n")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: one\n  default: true\n  data_files: one.jsonl\n- config_name: two\n"
        "  sep: ;\n  data_files:\n  - split: test\n    path: 't*.csv'\n---\n"
    )
    assert read_dataset(tmp_path)["caption"][:] == ["a"]
    assert read_dataset(tmp_path, "two", split="test")[:] == {"id": ["0012"], "caption": ["b"]}
    with pytest.raises(InputError, match="no configuration 'three'; its configurations are one, two"):
        read_dataset(tmp_path, "three")
    with pytest.raises(InputError, match="no configuration 'one'; it is one file"):
        read_dataset(tmp_path / "one.jsonl", "one")


def test_what_has_no_configurations_is_not_read_for_one(tmp_path):
    rows = Dataset.from_dict({"caption": ["a"]})
    rows.save_to_disk(tmp_path / "saved")
    for source in (tmp_path / "saved", rows, rows.to_iterable_dataset()):
        with pytest.raises(InputError, match="no configuration 'one'"):
            read_dataset(source, "one")
    with pytest.raises(InputError, match=r"has no split 'train\[:1\]' to be chosen"):
        read_dataset(rows, split="train[:1]")
    assert read_dataset(Dataset.from_dict({"caption": ["a"]}, split="test"), split="test")["caption"][:] == ["a"]


@pytest.mark.parametrize(
    "pattern", ["../secret.jsonl", "/etc/*.jsonl", "https://example.org/x.jsonl", "none-*.jsonl", "3"]
)
def test_a_card_that_leads_out_of_its_folder_or_nowhere_is_refused(tmp_path, pattern):
    write_lines(tmp_path / "secret.jsonl", ["x"])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "README.md").write_text(CARD.format(pattern))
    with pytest.raises(InputError, match=r"README\.md"):
        read_dataset(tmp_path / "data")


@pytest.mark.parametrize(
    "card", [b"---\na: [\n---\n", b"---\n- a\n---\n", b"---\nconfigs: 3\n---\n", b"---\na: \xe9\n---\n"]
)
def test_a_card_that_cannot_be_read_is_named(tmp_path, card):
    (tmp_path / "README.md").write_bytes(card)
    for read in (read_card, read_dataset, read_provenance):
        with pytest.raises(InputError, match=r"README\.md: its metadata"):
            read(tmp_path)


def test_folders_of_save_to_disk_are_read_with_their_splits(tmp_path):
    rows(3).save_to_disk(tmp_path / "one")
    DatasetDict(train=rows(3), test=rows(2)).save_to_disk(tmp_path / "two")
    assert len(read_dataset(tmp_path / "one")) == len(read_dataset(tmp_path / "two")) == 3
    assert len(read_dataset(tmp_path / "two", split="test")) == 2


def test_a_column_may_begin_with_any_number_of_nulls(tmp_path):
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for row in range(16_000):
            file.write(json.dumps({"id": row, "caption": "x" * 700, "image_embeds": None}) + "\n")
        file.write(json.dumps({"id": 16_000, "caption": "x", "image_embeds": [0.5, 1]}) + "\n")
    assert read_dataset(path)[16_000]["image_embeds"] == [0.5, 1.0]
    stream = read_dataset(path, streaming=True)
    assert str(stream.features["image_embeds"]) == "List(Value('float64'))"
    assert [row["image_embeds"] for row in stream.skip(15_999)] == [None, [0.5, 1.0]]


@few
@given(name=file_names, other=file_names)
def test_a_file_s_name_is_a_name_and_no_pattern(tmp_path_factory, name, other):
    folder = tmp_path_factory.mktemp("names")
    for each in {name, other}:
        write_lines(folder / f"{each}.jsonl", [each])
    for each in {name, other}:
        assert read_dataset(folder / f"{each}.jsonl")["caption"][:] == [each]
    inner = folder / f"{name}.d"
    write_lines(inner / "rows.jsonl", ["inner"])
    assert read_dataset(inner)["caption"][:] == ["inner"]


@few
@given(
    order=st.permutations(["id", "caption", "image_embeds"]),
    kind=st.sampled_from([pa.list_(pa.float32()), pa.list_(pa.float32(), 2), pa.large_list(pa.float32())]),
)
def test_shards_are_joined_by_the_names_of_their_columns(tmp_path_factory, order, kind):
    from unicorn_hf.data.vectors import open_vectors

    folder = tmp_path_factory.mktemp("shards")
    first = pa.table({"id": ["a"], "caption": ["A"], "image_embeds": pa.array([[1, 0]], pa.list_(pa.float32(), 2))})
    second = pa.table({"id": ["b"], "caption": ["B"], "image_embeds": pa.array([[0, 1]], kind)}).select(order)
    pq.write_table(first, folder / "0.parquet")
    pq.write_table(second, folder / "1.parquet")
    expected = {"id": ["a", "b"], "caption": ["A", "B"], "image_embeds": [[1, 0], [0, 1]]}
    assert read_dataset(folder).to_dict() == expected
    tables = [table for table, _ in open_vectors(folder, "image_embeds").tables()]
    assert pa.concat_tables(tables).to_pydict() == expected


@pytest.mark.parametrize("first", [pa.null(), pa.list_(pa.float32())])
def test_a_shard_may_hold_nothing_but_nulls(tmp_path, first):
    from unicorn_hf.data.vectors import open_vectors

    pq.write_table(pa.table({"id": ["a"] * 600, "image_embeds": pa.array([None] * 600, first)}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"id": ["b"], "image_embeds": [[0.5, 1.0]]}), tmp_path / "1.parquet")
    assert read_dataset(tmp_path)["image_embeds"][599:] == [None, [0.5, 1.0]]
    for source in (tmp_path, read_dataset(tmp_path)):
        vectors = open_vectors(source, "image_embeds")
        assert (vectors.num_rows, vectors.embed_dim) == (601, 2)
        assert np.isfinite(np.concatenate(list(vectors.blocks()))).all(axis=1).tolist() == [False] * 600 + [True]


def test_shards_with_vectors_of_another_length_are_refused_by_row(tmp_path):
    from unicorn_hf.data.vectors import open_vectors

    for index, kind in enumerate((pa.list_(pa.float32(), 2), pa.list_(pa.float32(), 3))):
        table = pa.table({"id": [f"row {index}"], "v": pa.array([[1.0] * kind.list_size], kind)})
        pq.write_table(table, tmp_path / f"{index}.parquet")
    with pytest.raises(InputError, match=r"row 1 \(id 'row 1'\) has 3 dimensions in 'v'; expected 2"):
        list(open_vectors(tmp_path, "v").blocks())


def test_shards_with_other_columns_are_refused_by_name(tmp_path):
    from unicorn_hf.data.vectors import open_vectors

    vectors = [[1.0, 0.0]]
    pq.write_table(pa.table({"id": ["a"], "image_embeds": vectors}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"key": ["a"], "image_embeds": vectors}), tmp_path / "1.parquet")
    with pytest.raises(InputError, match=r"1\.parquet: lacks the column 'id'"):
        open_vectors(tmp_path, "image_embeds")
    with pytest.raises(InputError, match="cannot be read"):
        read_dataset(tmp_path)


def test_data_of_one_subfolder_are_the_folder_s(tmp_path):
    write_dataset(rows(3), tmp_path / "only", title="Only", provenance={"image_embeds": {"encoder": "sandbox"}})
    assert find_data_files(tmp_path).root == tmp_path / "only"
    assert read_provenance(tmp_path) == {"image_embeds": {"encoder": "sandbox"}}
