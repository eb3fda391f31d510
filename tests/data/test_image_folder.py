import os
import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from unicorn_hf import InputError
from unicorn_hf.data.sources import read_dataset

letters = st.text(string.ascii_letters + string.digits + " []*?!#%&'(){}+,;=@^~_-.:é\n", min_size=1, max_size=8)
names = letters | st.sampled_from(["train", "test", "old train", ".hidden", "__x", "validation", "data", "a::b"])


def draw(path, colour="red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2), colour).save(path, "PNG")


def names_of(dataset) -> list[str]:
    import datasets

    cells = dataset.cast_column("image", datasets.Image(decode=False))["image"][:]
    return [os.path.basename(cell["path"]) for cell in cells]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(paths=st.lists(st.tuples(st.lists(names, max_size=2), names), min_size=1, max_size=5))
def test_every_image_is_a_row_whatever_its_name(tmp_path_factory, paths):
    folder = tmp_path_factory.mktemp("images")
    files = set()
    for folders, name in paths:
        path = folder.joinpath(*(f"{each}.d" if each.strip(".") == "" else each for each in folders), f"{name}.png")
        draw(path)
        files.add(path)
    dataset = read_dataset(folder)
    assert sorted(names_of(dataset)) == sorted(path.name for path in files)
    assert all(image.size == (2, 2) for image in dataset["image"][:])


def test_images_without_an_ending_or_with_one_of_capitals_are_rows_and_notes_are_none(tmp_path):
    for name in ("cat", "dog.JPG", "old train.png"):
        draw(tmp_path / name)
    for name in ("notes.txt", "cat.json", ".DS_Store", "LICENSE"):
        (tmp_path / name).write_text("no image")
    assert names_of(read_dataset(tmp_path)) == ["cat", "dog.JPG", "old train.png"]


def test_a_name_that_is_no_utf_8_is_a_row(tmp_path):
    draw(tmp_path / "x.png")
    os.rename(tmp_path / "x.png", os.path.join(os.fsencode(tmp_path), b"caf\xe9.png"))
    assert read_dataset(tmp_path)[0]["image"].size == (2, 2)


def test_linked_folders_are_followed_once_and_broken_links_are_rows(tmp_path):
    draw(tmp_path / "elsewhere" / "cat.png")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cats").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "again").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "gone.png").symlink_to(tmp_path / "nothing.png")
    assert names_of(read_dataset(tmp_path / "photos")) == ["cat.png", "gone.png"]


def test_metadata_describe_images_and_leave_none_out(tmp_path):
    for name in ("cat.png", "dog.png", "sub/bird.png"):
        draw(tmp_path / name)
    (tmp_path / "metadata.csv").write_text("file_name,caption\ndog.png,a dog\nsub/bird.png,a bird\ngone.png,gone\n")
    dataset = read_dataset(tmp_path)
    assert dict(zip(names_of(dataset), dataset["caption"][:], strict=True)) == {
        "cat.png": None, "dog.png": "a dog", "bird.png": "a bird", "gone.png": "gone"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("caption\nx\n", "expected file_name"),
        ("file_name,a\n../x.png,1\n", "inside"),
        ("file_name,a\nx.png,1\nx.png,2\n", "twice"),
    ],
)
def test_metadata_that_cannot_be_used_are_named(tmp_path, text, reason):
    draw(tmp_path / "x.png")
    (tmp_path / "metadata.csv").write_text(text)
    with pytest.raises(InputError, match=f"metadata.csv: .*{reason}"):
        read_dataset(tmp_path)


def test_folders_are_labels_and_a_split_is_a_subfolder(tmp_path):
    for name in ("train/a.png", "test/b.png"):
        draw(tmp_path / name)
    dataset = read_dataset(tmp_path)
    assert names_of(dataset) == ["b.png", "a.png"] and dataset.features["label"].names == ["test", "train"]
    assert names_of(read_dataset(tmp_path, split="test")) == ["b.png"]
    with pytest.raises(InputError, match="no split 'validation'"):
        read_dataset(tmp_path, split="validation")


def test_images_beside_data_are_refused(tmp_path):
    draw(tmp_path / "images" / "a.png")
    (tmp_path / "questions.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match=r"1 images and also questions\.jsonl"):
        read_dataset(tmp_path)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="no data file and no image"):
        read_dataset(tmp_path)
