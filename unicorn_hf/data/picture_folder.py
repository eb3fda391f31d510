"""A folder of pictures as a dataset: every picture is a row, whatever its name and wherever it lies.

`datasets` takes a folder or a file called `train` or `test` for a split and leaves the others out, and with them hidden
ones and what a metadata file does not name.
"""

from pathlib import Path, PurePosixPath

from unicorn_hf.data.data_files import FILE_FORMATS, METADATA_NAMES, PICTURE_SUFFIXES, DataFiles, files_under
from unicorn_hf.errors import InputError

_NOT_PICTURES = frozenset((*FILE_FORMATS, ".html", ".md", ".xml", ".yaml", ".yml"))


def read_pictures(found: DataFiles, split: str, read_table):
    """The pictures of a folder, in the order of their paths, as a `datasets.Dataset` with the column `image`.

    A row is a file with the ending of a picture, or one that Pillow knows by its first bytes. Files called
    `metadata.csv`, `metadata.jsonl` or `metadata.parquet` give further columns to the pictures that they name under
    `file_name`, beside them or below; without any, a picture's folder is its `label`, where there are several.

    Args:
        split: `train` is the whole folder (or the files that the card lists for it), another one the subfolder of that
            name.
        read_table: reads a metadata file, as `read_dataset` does.

    Raises:
        InputError: there is no picture, or no such split; a metadata file cannot be used.
    """
    import datasets

    files = found.splits.get(split)
    if files is None and "/" not in split and split not in (".", "..") and (found.root / split).is_dir():
        files = files_under(found.root / split)
    if files is None:
        found.of_split(split)
    metadata = [file for file in files if file.name in METADATA_NAMES]
    pictures = [file for file in files if is_picture(file)]
    described, columns = _read_metadata(metadata, read_table)
    pictures += sorted(set(described) - set(pictures))  # named, and not there: such a row fails and is listed
    if not pictures:
        raise InputError(f"{found.root}: holds no data file and no picture; expected some")
    rows = {"image": [picture_cell(picture) for picture in pictures]}
    features = {"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}}
    folders = sorted({picture.parent.name for picture in pictures})
    if metadata:
        for name, feature in columns.items():
            rows[name] = [described.get(picture, {}).get(name) for picture in pictures]
            features[name] = feature
    elif len(folders) > 1:
        folders = sorted({_readable(name) for name in folders})
        rows["label"] = [_readable(picture.parent.name) for picture in pictures]
        features["label"] = datasets.ClassLabel(names=folders)
        rows["label"] = [features["label"].str2int(name) for name in rows["label"]]
    dataset = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    return dataset.cast_column("image", datasets.Image())  # made as one, it would drop bytes whose path is a file's


def is_picture(file: Path) -> bool:
    """Whether a file is called a picture, or is one without being called anything else."""
    from PIL import Image

    suffix = file.suffix.lower()
    if suffix in PICTURE_SUFFIXES:
        return True
    if suffix in _NOT_PICTURES or not file.is_file():
        return False
    try:
        with Image.open(file):
            return True
    except Exception:  # Pillow's plug-ins raise dozens of types for what is theirs only at first sight
        return False


def _read_metadata(files: list[Path], read_table) -> tuple[dict[Path, dict], dict]:
    """The further columns of the pictures that are named, by path; and the columns' types."""
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
            picture = file.parent / name
            if picture in described:
                raise InputError(f"{file}: row {row}: {name!r} is named twice; expected each picture once")
            described[picture] = values
    columns.pop("file_name", None)
    return described, columns


def picture_cell(picture: Path) -> dict:
    """A picture file as a cell of a column of `datasets.Image`."""
    # `datasets` opens a path up to its first "::", and keeps paths in UTF-8.
    name = str(picture)
    if picture.is_file() and ("::" in name or _readable(name) != name):
        return {"bytes": picture.read_bytes(), "path": _readable(name)}
    return {"bytes": None, "path": _readable(name)}


def _readable(name: str) -> str:
    return name.encode(errors="replace").decode()
