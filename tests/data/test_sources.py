import codecs
import json

import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Features, Image, List, Value, load_dataset
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from unicorn_hf import InputError
from unicorn_hf.data.dataset_folder import write_dataset
from unicorn_hf.data.provenance import read_provenance
from unicorn_hf.data.shards import write_shards
from unicorn_hf.data.sources import check_columns, read_dataset
from unicorn_hf.data.staging import new_folder

ROWS = Dataset.from_dict({"id": [str(i) for i in range(100)], "caption": [f"caption {i}" * 50 for i in range(100)]})


def test_what_is_written_is_read_back_by_load_dataset_with_its_provenance(tmp_path):
    provenance = {"image_embeds": {"encoder": "sandbox", "embed_dim": 64, "transfer": "realign"}}
    write_dataset(ROWS, tmp_path / "out", title="Test", provenance=provenance)
    assert load_dataset(str(tmp_path / "out"), split="train").to_dict() == ROWS.to_dict()
    assert read_dataset(tmp_path / "out").to_dict() == ROWS.to_dict()
    assert read_provenance(tmp_path / "out") == provenance


def test_a_large_dataset_is_written_in_shards_in_order(tmp_path):
    rows = Dataset.from_dict({"id": list(range(5000))}).select(range(4999, -1, -1))
    write_shards(rows.with_format("arrow").iter(1000), tmp_path, rows.features.arrow_schema, shard_size=1)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"train-{index:05d}-of-00005.arrow" for index in range(5)]
    read = load_dataset("arrow", data_files=[str(tmp_path / name) for name in names], split="train")
    assert read["id"][:] == rows["id"][:]


def test_folders_of_one_name_that_differ_in_a_number_alone_are_told_apart(tmp_path):
    features = Features(id=Value("string"), image_embeds=List(Value("float16"), length=2))
    for parent, number in (("a", 0.5), ("b", 0.25)):
        rows = Dataset.from_dict({"id": ["x"], "image_embeds": [[number, 1]]}, features=features)
        write_dataset(rows, tmp_path / parent / "same", title="Same")
        assert load_dataset(str(tmp_path / parent / "same"), split="train").to_dict() == rows.to_dict()


def test_images_are_written_with_the_dataset_and_not_as_paths(tmp_path):
    PIL.Image.new("RGB", (4, 4), "red").save(tmp_path / "red.png")
    rows = Dataset.from_dict({"image": [str(tmp_path / "red.png")]}).cast_column("image", Image())
    write_dataset(rows, tmp_path / "out", title="Test")
    (tmp_path / "red.png").unlink()
    assert load_dataset(str(tmp_path / "out"), split="train")[0]["image"].getpixel((0, 0)) == (255, 0, 0)


def test_a_folder_that_was_interrupted_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError), new_folder(tmp_path / "out") as folder:
        (folder / "half").write_text("written")
        raise RuntimeError("stopped")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_not_touched(tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(InputError, match="not an empty folder"), new_folder(tmp_path):
        pass
    assert (tmp_path / "mine").read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("seeds.xyz", b"red", "unknown file type '.xyz'"),
        ("seeds.jsonl", b"{not json", "cannot be read"),
        ("seeds.txt", b"", "cannot be read|is empty"),
        ("seeds.parquet", b"nonsense", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_dataset(tmp_path / name)
    assert name in str(caught.value)


def test_a_source_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.parquet: no such file"):
        read_dataset(tmp_path / "nothing.parquet")


def test_a_missing_column_is_named_beside_those_there_are():
    with pytest.raises(InputError, match="has no column 'seed'; its columns are id, caption"):
        check_columns(ROWS, "id", "seed", source="rows")


# Text stays text


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("format", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("text_first", [False, True])
def test_an_id_that_is_a_number_in_one_file_and_text_in_another_keeps_its_zeros(
    format, text_first, streaming, tmp_path
):
    write = {
        "csv": lambda rows, path: rows.to_csv(path),
        "jsonl": lambda rows, path: rows.to_json(path),
        "parquet": lambda rows, path: rows.to_parquet(path),
    }[format]
    for name, ids in (("a", ["0012", "x"]), ("b", [12, 13])) if text_first else (("a", [12, 13]), ("b", ["0012", "x"])):
        write(Dataset.from_dict({"id": ids, "code": ids}), tmp_path / f"{name}.{format}")
    rows = list(read_dataset(tmp_path, streaming=streaming))
    expected = ["0012", "x", "12", "13"] if text_first else ["12", "13", "0012", "x"]
    assert [row["id"] for row in rows] == [row["code"] for row in rows] == expected


_cells = st.one_of(
    st.sampled_from(["NA", "None", "null", "nan", "n/a", "0012", "12", "-0.5", "+1", "1e5", "007.5", "True", "a b"]),
    st.integers().map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(str),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cells=st.lists(st.tuples(_cells, _cells), min_size=1, max_size=5))
def test_a_cell_of_a_csv_is_what_is_written_there(cells, tmp_path):
    path = tmp_path / f"{abs(hash(tuple(cells)))}.csv"
    path.write_text("caption,other\n" + "".join(f"{caption},{other}\n" for caption, other in cells))
    rows = read_dataset(path)
    assert rows["caption"][:] == [caption for caption, _ in cells]
    for value, (_, written) in zip(rows["other"], cells, strict=True):
        assert value == written if isinstance(value, str) else value == float(written)


def test_columns_of_numbers_in_a_csv_are_numbers_and_an_empty_cell_is_a_null(tmp_path):
    (tmp_path / "rows.csv").write_text("id,count,share,image_id,word\n1,3,0.5,7,a\n2,4,,8,\n")
    rows = read_dataset(tmp_path / "rows.csv")
    assert rows.to_list() == [
        {"id": "1", "count": 3, "share": 0.5, "image_id": "7", "word": "a"},
        {"id": "2", "count": 4, "share": None, "image_id": "8", "word": None},
    ]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.txt", "red dog\nblue dog\n"),
        ("rows.csv", "text\nred dog\nblue dog\n"),
        ("rows.jsonl", '{"text": "red dog"}\n{"text": "blue dog"}\n'),
        ("rows.json", '[{"text": "red dog"}, {"text": "blue dog"}]'),
    ],
)
def test_a_mark_of_the_byte_order_is_no_part_of_the_rows(name, content, streaming, tmp_path):
    for mark in (b"", codecs.BOM_UTF8):
        (tmp_path / name).write_bytes(mark + content.encode())
        rows = read_dataset(tmp_path / name, streaming=streaming)
        assert list(rows) == [{"text": "red dog"}, {"text": "blue dog"}]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.txt"])
def test_another_encoding_is_named(name, encoding, tmp_path):
    (tmp_path / name).write_text('{"id": 1}', encoding=encoding)
    with pytest.raises(InputError, match=rf"{name}: is in UTF-16 or UTF-32, by its first bytes; expected UTF-8"):
        read_dataset(tmp_path / name)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "content"),
    [(f"rows.{kind}", text) for kind in ("jsonl", "json", "csv", "txt") for text in ("", "\n \n")]
    + [("rows.json", "[]"), ("rows.json", " [ ]\n"), ("rows.csv", "id,caption\n")],
)
def test_a_file_without_a_row_is_called_empty(name, content, streaming, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=f"{name}: is empty; expected at least one row"):
        read_dataset(tmp_path / name, streaming=streaming)


@pytest.mark.parametrize("source", ["", " "])
def test_an_empty_name_is_not_the_current_folder(source):
    with pytest.raises(InputError, match="name of the data is empty"):
        read_dataset(source)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_saved_dataset_is_read_by_the_splits_that_datasets_has(streaming, tmp_path):
    train, test = Dataset.from_dict({"a": [1, 2, 3, 4]}), Dataset.from_dict({"a": [5]})
    train.save_to_disk(tmp_path / "one")
    DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / "two")
    for split, expected in (("train", [1, 2, 3, 4]), ("train[:1]", [1]), ("train[50%:]", [3, 4])):
        for name in ("one", "two"):
            rows = read_dataset(tmp_path / name, split=split, streaming=streaming)
            assert [row["a"] for row in rows] == expected
    rows = read_dataset(tmp_path / "two", split="train[:1]+test", streaming=streaming)
    assert [row["a"] for row in rows] == [1, 5]
    with pytest.raises(InputError, match="has no split 'test'; its splits are train"):
        read_dataset(tmp_path / "one", split="test[:1]")


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    opening=st.sampled_from(["[", '{"a":', '[ {"]}": ', '["\\\\", ']),
    depth=st.integers(101, 3000),
    before=st.sampled_from(["", '"]]]]", ', '"\\"]", ']),
    is_array=st.booleans(),
)
@example(opening="[", depth=100_000, before="", is_array=False)
@example(opening='{"a":', depth=100_000, before="", is_array=True)
def test_json_that_is_nested_deep_is_one_sentence(tmp_path, opening, depth, before, is_array):
    row = f'{{"id": "1", "caption": [{before}{opening * depth}'
    path = tmp_path / ("deep.json" if is_array else "deep.jsonl")
    path.write_text(f"[{row}" if is_array else f'{{"id": "0", "caption": []}}\n{row}\n')
    with pytest.raises(InputError, match=r"deep\.json.*: is nested [\d,]+ deep; expected"):
        read_dataset(path)


def test_many_brackets_in_a_text_are_no_depth(tmp_path):
    rows = [{"id": str(row), "caption": "[{" * 500, "turns": [[row]] * 200} for row in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    for name in ("rows.jsonl", "rows.json"):
        assert read_dataset(tmp_path / name).to_list() == rows


def test_a_parquet_file_of_no_rows_and_a_csv_file_of_thousands_of_columns_are_one_sentence_each(tmp_path):
    pq.write_table(pa.table({"caption": pa.array([], pa.string())}), tmp_path / "none.parquet")
    with pytest.raises(InputError, match="is empty; expected at least one row"):
        read_dataset(tmp_path / "none.parquet")
    names = ",".join(f"c{number}" for number in range(50_000))
    (tmp_path / "wide.csv").write_text(f"{names}\n{names}\n")
    with pytest.raises(InputError, match=r"wide\.csv: has 50,000 columns; expected 2,000 at most"):
        read_dataset(tmp_path / "wide.csv")
