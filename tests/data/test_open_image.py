"""The embedding step and the model's processor see the same pixels in an image, whatever its kind."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from unicorn_hf.modeling.processing_unicorn import _load_image

from unicorn_hf.data.images import open_image

sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


def pixels(channels, dtype=np.uint8):
    return sizes.flatmap(lambda size: hnp.arrays(dtype, (*size, channels) if channels > 1 else size))


def palette(array):
    return Image.fromarray(array).quantize(8)


def transparent_palette(array):
    image = palette(array)
    image.info["transparency"] = 0
    return image


KINDS = {
    "grey": (pixels(1), Image.fromarray, "PNG"),
    "colour": (pixels(3), Image.fromarray, "PNG"),
    "alpha": (pixels(4), Image.fromarray, "PNG"),
    "grey and alpha": (pixels(2), Image.fromarray, "PNG"),
    "palette": (pixels(3), palette, "PNG"),
    "palette with a transparent colour": (pixels(3), transparent_palette, "PNG"),
    "black and white": (pixels(1), lambda array: Image.fromarray(array).convert("1"), "PNG"),
    "16 bits": (pixels(1, np.uint16), Image.fromarray, "PNG"),
    "16 bits, dark": (pixels(1), lambda array: Image.fromarray(array.astype(np.uint16)), "PNG"),
    "32 bits": (pixels(1, np.uint16), lambda array: Image.fromarray(array.astype(np.int32)), "TIFF"),
    "floats": (pixels(1), lambda array: Image.fromarray(array.astype(np.float32) / 255), "TIFF"),
    "CMYK": (pixels(4), lambda array: Image.frombytes("CMYK", array.shape[1::-1], array.tobytes()), "TIFF"),
}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_both_decoders_see_the_same_pixels(kind, tmp_path_factory, data):
    arrays, make, format = KINDS[kind]
    image = make(data.draw(arrays))
    file = tmp_path_factory.mktemp("images") / f"x.{format.lower()}"
    exif = Image.Exif()
    exif[0x0112] = data.draw(st.integers(1, 8))  # the eight ways in which a camera may be held
    image.save(file, format, exif=exif)
    stored = open_image(file)
    assert stored.mode == "RGB"
    for theirs in (_load_image(file), open_image(file.read_bytes()), _load_image(str(file))):
        assert (np.asarray(theirs) == np.asarray(stored)).all()


def test_transparency_lies_on_white_and_16_bits_are_scaled():
    for read in (open_image, _load_image):
        assert read(Image.new("RGBA", (2, 2), (255, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)
        assert read(Image.fromarray(np.full((2, 2), 200, np.uint16))).getpixel((0, 0)) == (1, 1, 1)
        assert read(Image.fromarray(np.full((2, 2), 65535, np.uint16))).getpixel((0, 0)) == (255, 255, 255)


def test_exif_turns_an_image_in_both():
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(buffer := io.BytesIO(), "PNG", exif=exif)
    for read in (open_image, _load_image):
        assert np.asarray(read(Image.open(buffer)))[..., 0].tolist() == [[120, 0], [160, 40], [200, 80]]
