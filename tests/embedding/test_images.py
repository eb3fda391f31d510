"""Real photographs, in the forms in which pictures come."""

import io
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from unicorn_hf import embed, load_encoder
from unicorn_hf.data.images import open_image

skimage_data = pytest.importorskip("skimage.data")


@pytest.fixture(scope="module")
def encoder(open_clip_vit):
    return load_encoder(open_clip_vit, device="cpu")


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    return Image.fromarray(skimage_data.astronaut()).resize((160, 120))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def upside_down(image: Image.Image) -> bytes:
    """Stored upside down, with the EXIF tag that says so."""
    exif = Image.Exif()
    exif[0x0112] = 3
    return encoded(image.rotate(180), "JPEG", exif=exif, quality=95)


def sixteen_bit(image: Image.Image) -> bytes:
    return encoded(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257), "PNG")


FORMS = {
    "jpeg": lambda image: encoded(image, "JPEG", quality=95),
    "progressive jpeg": lambda image: encoded(image, "JPEG", quality=95, progressive=True),
    "png": lambda image: encoded(image, "PNG"),
    "png with transparency": lambda image: encoded(image.convert("RGBA"), "PNG"),
    "lossless webp": lambda image: encoded(image, "WEBP", lossless=True),
    "webp": lambda image: encoded(image, "WEBP", quality=90),
    "gif": lambda image: encoded(image.quantize(255), "GIF"),
    "animated gif": lambda image: encoded(
        image.quantize(255), "GIF", save_all=True, append_images=[image.rotate(180).quantize(255)]
    ),
    "palette with transparency": lambda image: encoded(image.quantize(255), "PNG", transparency=0),
    "cmyk jpeg": lambda image: encoded(image.convert("CMYK"), "JPEG", quality=95),
    "exif-rotated jpeg": upside_down,
    "tiff": lambda image: encoded(image, "TIFF"),
    "bmp": lambda image: encoded(image, "BMP"),
}
GREY_FORMS = {
    "grey png": lambda image: encoded(image.convert("L"), "PNG"),
    "16-bit png": sixteen_bit,
    "32-bit tiff": lambda image: encoded(
        Image.fromarray(np.asarray(image.convert("L")).astype(np.int32) * 257), "TIFF"
    ),
    "grey png with transparency": lambda image: encoded(image.convert("LA"), "PNG"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_picture_s_vector_does_not_depend_on_its_form(form, photograph, encoder):
    expected = encoder.encode_images([photograph])
    got = encoder.encode_images([FORMS[form](photograph)])
    assert float((got * expected).sum()) > 0.999
    unlike = encoder.encode_images([photograph.rotate(180)])
    assert float((got * unlike).sum()) < float((got * expected).sum())


@pytest.mark.parametrize("form", GREY_FORMS)
def test_a_grey_picture_s_pixels_are_kept_at_any_depth(form, photograph):
    got = np.asarray(open_image(GREY_FORMS[form](photograph)))
    expected = np.asarray(photograph.convert("L").convert("RGB"))
    np.testing.assert_allclose(got.astype(int), expected.astype(int), atol=1)


@pytest.fixture
def folder(photograph, tmp_path):
    """Sixteen good pictures in a folder, and four that cannot be read."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    names = ["astronaut", "chelsea", "coffee", "camera"]
    for name in names:
        for suffix in ("jpg", "png", "webp", "gif"):
            Image.fromarray(getattr(skimage_data, name)()).convert("RGB").resize((96, 64)).save(
                folder / f"{name}.{suffix}"
            )
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("not a picture")
    jpeg = encoded(photograph, "JPEG")
    (folder / "truncated.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "half.png").write_bytes(encoded(photograph, "PNG")[:2000])
    return folder


@pytest.mark.parametrize("num_workers", [0, 1])
def test_pictures_that_cannot_be_decoded_do_not_end_the_run(num_workers, folder, tmp_path, open_clip_vit, encoder):
    dataset = embed(folder, tmp_path / "out", encoder=open_clip_vit, num_workers=num_workers, batch_size=3)
    failed = [json.loads(line) for line in (tmp_path / "out" / "failed.jsonl").read_text().splitlines()]
    reasons = {failure["path"].rpartition("/")[2]: failure["reason"] for failure in failed}
    assert sorted(reasons) == ["empty.png", "half.png", "text.jpg", "truncated.jpg"]
    assert reasons["empty.png"] == "ValueError: the file is empty"
    assert "cannot identify image file" in reasons["text.jpg"] and "truncated" in reasons["truncated.jpg"]
    assert len(dataset) + len(failed) == 20
    expected = encoder.encode_images(dataset["image"][:])
    np.testing.assert_allclose(dataset.with_format("numpy")["image_embeds"][:], expected, atol=2e-3)


def test_every_picture_is_embedded_or_listed_whatever_it_is_called(photograph, tmp_path, open_clip_vit):
    folder = tmp_path / "ph[1]"
    good = ["train/a.png", "cats/a.png", ".hidden/b.png", "__x/c.png", "old train.png", "li\nne.png", "x::y.png", "cat"]
    for name in good:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(photograph, "PNG"))
    (folder / "metadata.csv").write_text("file_name,caption\nold train.png,a train\n")
    (folder / "heic.HEIC").write_bytes(b"no picture")
    (folder / "gone.png").symlink_to(folder / "nothing")
    dataset = embed(folder, tmp_path / "out", encoder=open_clip_vit)
    failed = [json.loads(line) for line in (tmp_path / "out" / "failed.jsonl").read_text().splitlines()]
    assert sorted(Path(failure["path"]).name for failure in failed) == ["gone.png", "heic.HEIC"]
    assert len(dataset) == len(good)
    assert [row["caption"] for row in dataset if row["caption"]] == ["a train"]


def test_tars_in_a_folder_whose_name_is_a_pattern_are_read(photograph, tmp_path, open_clip_vit):
    for folder, key in (("t1", "other"), ("t[1]", "mine")):
        (tmp_path / folder).mkdir()
        write_tar(tmp_path / folder / "a*.tar", {key: {"jpg": encoded(photograph, "JPEG")}})
    for source in (tmp_path / "t[1]", tmp_path / "t[1]" / "a*.tar"):
        assert embed(source, encoder=load_encoder(open_clip_vit, device="cpu"))["__key__"][:] == ["mine"]


def test_the_output_holds_the_pictures_themselves(folder, tmp_path, open_clip_vit):
    embed(folder, tmp_path / "out", encoder=open_clip_vit)
    for path in folder.iterdir():
        path.unlink()
    dataset = datasets.load_dataset(str(tmp_path / "out"), split="train")
    assert dataset[0]["image"].size == (96, 64)


def test_the_sandbox_s_pictures_are_embedded_as_they_are_drawn():
    from unicorn_hf.sandbox.world import draw_all, split_scenes

    encoder = load_encoder("sandbox", device="cpu")
    pictures = draw_all(split_scenes(0, 4, 8, 4).pictures, seed=0)
    data = datasets.Dataset.from_dict({"image": pictures}).cast_column("image", datasets.Image())
    got = embed(data, encoder=encoder).with_format("numpy")["image_embeds"][:]
    np.testing.assert_allclose(got, encoder.encode_images(pictures), atol=1e-3)


def test_paths_and_bytes_in_plain_columns_are_read(folder, encoder):
    paths = sorted(str(path) for path in folder.glob("*.webp"))
    expected = encoder.encode_images(paths)
    for column in (paths, [Path(path).read_bytes() for path in paths]):
        dataset = embed(
            datasets.Dataset.from_dict({"picture": column}), encoder=encoder, column="picture", modality="image"
        )
        np.testing.assert_allclose(dataset.with_format("numpy")["image_embeds"][:], expected, atol=1e-3)


def write_tar(path, samples: dict[str, dict[str, bytes]]) -> None:
    import tarfile

    with tarfile.open(path, "w") as tar:
        for key, files in samples.items():
            for suffix, data in files.items():
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def test_webdataset_tars_are_embedded_a_shard_each(photograph, tmp_path, open_clip_vit):
    (tmp_path / "tars").mkdir()
    good, bad = encoded(photograph, "JPEG"), encoded(photograph, "JPEG")[:900]
    for tar in range(2):
        samples = {f"{tar}{i}": {"jpg": bad if i == 3 else good, "txt": f"{tar}{i}".encode()} for i in range(5)}
        write_tar(tmp_path / "tars" / f"{tar}.tar", samples)
    dataset = embed(tmp_path / "tars", tmp_path / "out", encoder=open_clip_vit, column="jpg")
    assert dataset["txt"][:] == ["00", "01", "02", "04", "10", "11", "12", "14"]
    assert dataset[0]["jpg"].size == photograph.size
    failed = [json.loads(line) for line in (tmp_path / "out" / "failed.jsonl").read_text().splitlines()]
    assert [(each["tar"], each["row"], each["__key__"]) for each in failed] == [("0.tar", 3, "03"), ("1.tar", 3, "13")]
