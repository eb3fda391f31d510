"""A folder of images as a dataset: every image is a row, whatever its name and place.

`datasets` reads a folder or file called `train` or `test` as a split and leaves the others out. It also leaves out
hidden images and images that a metadata file does not name.
"""

from pathlib import Path, PurePosixPath
from typing import Any

from unicorn_hf.data.data_files import FILE_FORMATS, IMAGE_SUFFIXES, METADATA_NAMES, DataFiles, files_under
from unicorn_hf.errors import InputError

_NOT_IMAGES = frozenset((*FILE_FORMATS, ".html", ".md", ".xml", ".yaml", ".yml"))


def read_image_folder(found: DataFiles, split: str, read_table):
    """The images of a folder, in the order of their paths, as a `datasets.Dataset` with the column `image`.

    A row is a file with the suffix of an image, or a file that Pillow recognises by its first bytes. Files called
    `metadata.csv`, `metadata.jsonl` or `metadata.parquet` add columns to the images named in their column `file_name`.
    Without such a file, and with several folders, an image's folder is its `label`.

    Args:
        split: `train` means the whole folder (or the files that the card lists for it); any other name a subfolder.
        read_table: reads a metadata file, as `read_dataset` does.

    Raises:
        InputError: there is no image or no such split, or a metadata file cannot be used.
    """
    import datasets

    is_folder = "/" not in split and split not in (".", "..") and (found.root / split).is_dir()
    files = files_under(found.root / split) if split not in found.splits and is_folder else found.of_split(split)
    metadata = [file for file in files if file.name in METADATA_NAMES]
    images = [file for file in files if is_image(file)]
    described, columns = _read_metadata(metadata, read_table)
    images += sorted(set(described) - set(images))  # named but missing: such a row fails and is listed
    if not images:
        raise InputError(f"{found.root}: holds no data file and no image; expected some")
    rows: dict[str, list] = {"image": [image_cell(image) for image in images]}
    features: dict[str, Any] = {"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}}
    folders = sorted({image.parent.name for image in images})
    if metadata:
        for name, feature in columns.items():
            rows[name] = [described.get(image, {}).get(name) for image in images]
            features[name] = feature
    elif len(folders) > 1:
        folders = sorted({_readable(name) for name in folders})
        rows["label"] = [_readable(image.parent.name) for image in images]
        features["label"] = datasets.ClassLabel(names=folders)
        rows["label"] = [features["label"].str2int(name) for name in rows["label"]]
    dataset = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    # The cast comes last: a column created as `Image` drops the bytes of a row whose path exists.
    return dataset.cast_column("image", datasets.Image())


def is_image(file: Path) -> bool:
    """Whether a file has the suffix of an image, or holds an image and has no suffix of another format."""
    from PIL import Image

    suffix = file.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return True
    if suffix in _NOT_IMAGES or not file.is_file():
        return False
    try:
        with Image.open(file):
            return True
    except Exception:  # Pillow's plug-ins raise dozens of types for files that only start like theirs
        return False


def _read_metadata(files: list[Path], read_table) -> tuple[dict[Path, dict], dict]:
    """Path of a named image -> its values, and the types of the columns."""
    described: dict[Path, dict] = {}
    columns: dict = {}
    for file in files:
        dataset = read_table(file)
        if "file_name" not in dataset.column_names or "image" in dataset.column_names:
            raise InputError(
                f"{file}: its columns are {', '.join(dataset.column_names)}; expected file_name, and none called image"
            )
        for name, feature in dataset.features.items():
            if columns.setdefault(name, feature) != feature:
                raise InputError(f"{file}: {name!r} holds {feature}, and {columns[name]} in another metadata file")
        for row, values in enumerate(dataset):
            name = values["file_name"]
            if not isinstance(name, str) or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise InputError(f"{file}: row {row}: file_name is {name!r}; expected a path inside the folder")
            image = file.parent / name
            if image in described:
                raise InputError(f"{file}: row {row}: {name!r} is named twice; expected each image once")
            described[image] = values
    columns.pop("file_name", None)
    return described, columns


def image_cell(image: Path) -> dict:
    """An image file as a cell of a column of `datasets.Image`."""
    # `datasets` cuts a path at its first "::", and stores paths as UTF-8.
    name = str(image)
    if image.is_file() and ("::" in name or _readable(name) != name):
        return {"bytes": image.read_bytes(), "path": _readable(name)}
    return {"bytes": None, "path": _readable(name)}


def _readable(name: str) -> str:
    return name.encode(errors="replace").decode()
