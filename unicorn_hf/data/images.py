"""Decode an image file: upright RGB, transparency over white, more than 8 bits scaled down.

`modeling/processing_unicorn.py` has a copy of this rule, because it is used without this package;
`tests/data/test_open_image.py` compares the two.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


def open_image(image) -> Image.Image:
    """An RGB image, upright, from a PIL image, a path, the bytes of an image file, or `{"bytes": …, "path": …}`."""
    if isinstance(image, dict):
        image = image["path"] if image["bytes"] is None else image["bytes"]
    if image is None:
        raise ValueError("there is no image")
    if image == b"" or (isinstance(image, str | Path) and Path(image).stat().st_size == 0):
        raise ValueError("the file is empty")
    if isinstance(image, Image.Image):
        most = 2 * (Image.MAX_IMAGE_PIXELS or np.inf)  # as where Pillow opens a file
        if image.width * image.height > most:
            raise ValueError(f"it has {image.width} x {image.height} pixels; expected {most:,} at most")
        image.load()
        return as_rgb(image)
    # Opened by name, Pillow would map the file, and turn some TIFF files the wrong way.
    with io.BytesIO(image) if isinstance(image, bytes) else open(image, "rb") as file:
        image = Image.open(file)
        image.load()
    return as_rgb(image)


def as_rgb(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF data says, put it on white where it is transparent, and scale it to 8 bits."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        # Pillow clips these values at 255, which gives a white image.
        values = np.asarray(image, np.float32)
        full = 65535 if image.mode != "F" else 255 if values.max(initial=0) > 1 else 1
        image = Image.fromarray((values * (255 / full)).round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
