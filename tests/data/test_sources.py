import PIL.Image
import pytest
from datasets import Dataset, Features, Image, List, Value, load_dataset

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


def test_pictures_are_written_with_the_dataset_and_not_as_paths(tmp_path):
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
