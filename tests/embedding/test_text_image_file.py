"""ReVision's data file, as its users have it."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from unicorn_hf import InputError, ModalityTransfer, embed, load_encoder
from unicorn_hf.cli import app
from unicorn_hf.data.provenance import read_provenance
from unicorn_hf.embedding.text_image_file import is_text_image_file

COLOURS = ["red", "green", "blue", "grey"]


@pytest.fixture
def data_file(tmp_path):
    (tmp_path / "photos").mkdir()
    for colour in COLOURS:
        Image.new("RGB", (32, 32), colour).save(tmp_path / "photos" / f"{colour}.png")
    images = [{"id": number, "image": f"{colour}.png"} for number, colour in enumerate(COLOURS)]
    texts = [{"id": f"t{number}", "text": f"a {colour} square"} for number, colour in enumerate(COLOURS[:3])]
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"images": images, "texts": texts}))
    return path


def test_both_sides_are_embedded_in_one_call_and_a_transfer_is_fitted_on_them(data_file, tmp_path, open_clip_vit):
    embedded = embed(data_file, tmp_path / "out", encoder=open_clip_vit, image_root=tmp_path / "photos")
    assert embedded["texts"]["id"][:] == ["t0", "t1", "t2"] and embedded["images"]["id"][:] == ["0", "1", "2", "3"]
    encoder = load_encoder(open_clip_vit, device="cpu")
    pictures = [Image.new("RGB", (32, 32), colour) for colour in COLOURS]
    got = embedded["images"].with_format("numpy")["image_embeds"][:]
    np.testing.assert_allclose(got, encoder.encode_images(pictures), atol=2e-3)
    assert read_provenance(tmp_path / "out" / "texts")["text_embeds"]["encoder"] == str(open_clip_vit)
    transfer = ModalityTransfer.fit(tmp_path / "out" / "texts", tmp_path / "out" / "images", method="mean_shift")
    assert transfer.method == "mean_shift"
    again = embed(data_file, tmp_path / "out", encoder=open_clip_vit, image_root=tmp_path / "photos")
    assert again["texts"].to_dict() == embedded["texts"].to_dict()


def test_the_command_says_what_came_of_each_side(data_file, tmp_path, open_clip_vit):
    (tmp_path / "photos" / "blue.png").unlink()
    arguments = [str(data_file), "-o", str(tmp_path / "out"), "--encoder", str(open_clip_vit)]
    result = CliRunner().invoke(app, ["embed", *arguments, "--image-root", str(tmp_path / "photos")])
    assert result.exit_code == 3, result.output
    failed = (tmp_path / "out" / "images" / "failed.jsonl").read_text()
    assert json.loads(failed)["id"] == "2" and "blue.png" in failed
    assert '"texts": {' in result.output and '"embedded": 3' in result.output


def test_the_command_names_both_sides_for_the_next_step(data_file, tmp_path):
    out = tmp_path / "out"
    arguments = [str(data_file), "-o", str(out), "--encoder", "sandbox", "--image-root", str(tmp_path / "photos")]
    result = CliRunner().invoke(app, ["embed", *arguments])
    assert result.exit_code == 0, result.output
    assert f"Next: unicorn-hf transfer fit --text {out / 'texts'} --image {out / 'images'} " in result.stderr


def test_one_side_is_asked_for_by_its_name(data_file, open_clip_vit):
    encoder = load_encoder(open_clip_vit, device="cpu")
    assert embed(data_file, encoder=encoder, dataset_config="texts").column_names == ["id", "text", "text_embeds"]
    with pytest.raises(InputError, match="no configuration 'audio'; it has texts and images"):
        embed(data_file, encoder=encoder, dataset_config="audio")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"texts": [{"id": 1, "text": "a"}], "images": []}', "holds no images"),
        ('{"texts": [{"id": 1, "text": "a"}, {"id": 2}]}', r"texts\[1\]: has the text"),
        ('{"texts": [{"id": 1, "text": "a"}, 3]}', r"texts\[1\]: is 3; expected an object"),
        ('{"texts": [{"id": 1, "text": "a"}, {"id": 2, "te', "is damaged after 1 texts"),
        ('{"texts": [{"id": 1, "text": "a", "x": 1}, {"id": 2, "text": "b", "x": "y"}]}', "one type per key"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_by_its_record(tmp_path, content, reason, open_clip_vit):
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(InputError, match=reason):
        embed(tmp_path / "data.json", encoder=load_encoder(open_clip_vit, device="cpu"))


@pytest.mark.parametrize(
    "content", ['[{"texts": [{"text": "a"}]}]', '{"id": 1, "texts": ["a"]}\n{"id": 2, "texts": ["b"]}', "{", "[1", "x"]
)
def test_other_json_is_no_such_file(tmp_path, content):
    (tmp_path / "data.json").write_text(content)
    assert not is_text_image_file(tmp_path / "data.json")
