"""Which files hold the rows of a dataset on disk, and which names belong to a dataset on the Hub.

`datasets` guesses: it guesses the split from file names, the format from the most common suffix (and leaves the other
files out), and whether a name is a path, a repository or something in its cache. This module does not guess: a source
has one meaning, or it is refused.
"""

import glob
import os
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from unicorn_hf.errors import InputError

# Suffix of a data file -> name of the `datasets` builder that reads it.
FILE_FORMATS = {
    ".arrow": "arrow",
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".tar": "webdataset",
    ".txt": "text",
}
IMAGES, SAVED = "images", "saved"  # no builder reads these: a folder of images, and a folder of `save_to_disk`
_IMAGE_ENDINGS = """
    apng avif bmp dib gif heic heif ico j2c j2k jfif jp2 jpe jpeg jpg jpx jxl pbm pcx pgm png pnm ppm sgi svg tga tif
    tiff webp xbm xpm
"""
IMAGE_SUFFIXES = frozenset(f".{ending}" for ending in _IMAGE_ENDINGS.split())
METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_SIDECARS = (".json", ".txt")  # an image's caption or record, in a file beside the image
# Files that `datasets`, transformers and the Hub's client leave beside data.
_RECORDS = ("config.json", "dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json")
_SPLIT_WORDS = {"train": "train", "training": "train", "validation": "validation", "valid": "validation"}
_SPLIT_WORDS |= {"val": "validation", "dev": "validation", "test": "test", "testing": "test", "eval": "test"}
# Suffixes of other files. A name with one of them is a path, never an id on the Hub.
_OTHER_ENDINGS = """
    7z avro bin bz2 ckpt db feather gguf gz h5 hdf5 htm html ipynb lance log md mp3 mp4 msgpack ndjson npy npz onnx orc
    pdf pickle pkl pt pth py safetensors sqlite tgz tsv wav xlsx xml xz yaml yml zip zst
"""
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zstd", ".lz4", ".zip", ".7z")
_UNREAD_TABLES = (".avro", ".feather", ".ipc", ".ndjson", ".ods", ".orc", ".pq", ".tsv", ".xls", ".xlsx")
_FILE_SUFFIXES = IMAGE_SUFFIXES | FILE_FORMATS.keys() | {f".{ending}" for ending in _OTHER_ENDINGS.split()}


@dataclass(frozen=True)
class DataFiles:
    """The files of one configuration of a dataset on disk.

    Attributes:
        root: the dataset's folder, or its file.
        format: a builder of `datasets`, `IMAGES`, or `SAVED`.
        splits: absolute paths by split, in the order in which they are read.
        config: the configuration's entry in the card.
    """

    root: Path
    format: str
    splits: dict[str, list[Path]]
    config: dict = field(default_factory=dict)

    def of_split(self, split: str) -> list[Path]:
        """The files of a split.

        Raises:
            InputError: there is no such split.
        """
        if split not in self.splits:
            raise InputError(f"{self.root}: has no split {split!r}; its splits are {', '.join(self.splits)}")
        return self.splits[split]


def find_data_files(source, name: str | None = None) -> DataFiles:
    """The data files of a file or folder.

    A folder's card lists them under `configs`. Without `configs`, the data files are the files with one suffix, in the
    folder or in `data/`. A name such as `test.jsonl`, `train-00000-of-00002.parquet` or `test/…` gives the split.

    Args:
        source: an existing file or folder.
        name: the configuration, if there are several: one from the card, or a subfolder.

    Raises:
        InputError: the configuration does not exist, there is nothing to read, or there could be several datasets.
    """
    path = Path(os.path.abspath(Path(source).expanduser()))
    if path.is_file():
        if path.suffix.lower() not in FILE_FORMATS:
            raise InputError(f"{source}: unknown file type {path.suffix!r}; expected one of {', '.join(FILE_FORMATS)}")
        if name is not None:
            raise InputError(f"{source}: has no configuration {name!r}; it is one file")
        return DataFiles(path, FILE_FORMATS[path.suffix.lower()], {"train": [path]})
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        if name is not None:
            raise InputError(f"{source}: has no configuration {name!r}; it is one dataset, saved by `save_to_disk`")
        return DataFiles(path, SAVED, {})
    configs = read_card(path).get("configs") or []
    if configs:
        return _of_config(path, _choose_config(path, configs, name))
    if name is not None:
        if re.fullmatch(r"[^/\\]+", name) and name not in (".", "..") and (path / name).is_dir():
            return find_data_files(path / name)
        raise InputError(f"{source}: has no configuration {name!r}; its card lists none, and there is no such folder")
    return _of_folder(path)


def read_card(folder) -> dict:
    """The metadata of a folder's card (`README.md`); empty if there is none.

    Raises:
        InputError: the card is not text, or its metadata is not a YAML mapping.
    """
    import yaml

    card = Path(folder) / "README.md"
    if not card.is_file():
        return {}
    try:
        text = card.read_text(encoding="utf-8-sig")
        match = re.match(r"---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", text, re.DOTALL | re.MULTILINE)
        metadata = yaml.safe_load(match[1]) if match else None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{card}: its metadata cannot be read ({reason}); correct the card, or remove it") from error
    configs = metadata.get("configs") if isinstance(metadata, dict) else None
    if not isinstance(metadata or {}, dict) or not _is_list_of_dicts(configs or []):
        raise InputError(
            f"{card}: its metadata is not a YAML mapping with a list of mappings under configs; correct the card"
        )
    return metadata or {}


def state_of(files) -> list[tuple[str, int, int, int]]:
    """Path, size, modification time and change time of each file: they differ after a file is written.

    The change time (`st_ctime`) is set by the system, so no program can set it back.
    """
    states = [(str(file), file.stat()) for file in files]
    return [(name, status.st_size, status.st_mtime_ns, status.st_ctime_ns) for name, status in states]


def is_hub_id(source) -> bool:
    """Whether a name can be a repository on the Hub (`org/name`) and is not a path.

    A name is a path if it exists, starts with `./`, `../`, `/` or `~`, ends with `/` or with the suffix of a file, has
    more than one slash, or lies in an existing folder.
    """
    if not isinstance(source, str) or Path(source).exists():
        return False
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*", source, re.ASCII):
        return False
    return not has_file_ending(source) and not Path(source).parent.exists()


def has_file_ending(name) -> bool:
    return PurePosixPath(name).suffix.lower() in _FILE_SUFFIXES


def _of_config(folder: Path, config: dict) -> DataFiles:
    base = folder
    if config.get("data_dir"):
        base = _inside(folder, str(config["data_dir"]))
        if not base.is_dir():
            name = str(config["data_dir"])[:100]
            raise InputError(f"{folder / 'README.md'}: names the data_dir {name!r}, but there is no such folder")
    entries = config.get("data_files")
    if entries is None:
        found = _of_folder(base)
        return DataFiles(folder, found.format, found.splits, config)
    if isinstance(entries, dict) and "path" not in entries:
        entries = [{"split": split, "path": path} for split, path in entries.items()]
    splits: dict[str, list[Path]] = {}
    for entry in entries if isinstance(entries, list) else [entries]:
        entry = entry if isinstance(entry, dict) else {"path": entry}
        patterns = entry.get("path")
        for pattern in patterns if isinstance(patterns, list) else [patterns]:
            files = splits.setdefault(str(entry.get("split", "train")), [])
            files += [file for file in _matches(folder, base, pattern) if file not in files]
    files = [file for files in splits.values() for file in files]
    if not files:
        raise InputError(f"{folder / 'README.md'}: its data_files name no file; list some, or leave data_files out")
    _check_all_read(files, folder)
    return DataFiles(folder, _format_of(files, folder), splits, config)


def _choose_config(folder: Path, configs: list[dict], name: str | None) -> dict:
    names = [str(config.get("config_name", "default")) for config in configs]
    if name is not None:
        if name not in names:
            raise InputError(f"{folder}: has no configuration {name!r}; its configurations are {', '.join(names)}")
        return configs[names.index(name)]
    defaults = [config for config in configs if config.get("default")]
    if len(configs) == 1 or defaults:
        return (defaults or configs)[0]
    if "default" in names:
        return configs[names.index("default")]
    raise InputError(f"{folder}: has the configurations {', '.join(names)}; name the one to read")


def _matches(folder: Path, base: Path, pattern) -> list[Path]:
    """The files that match a path or pattern of the card; hidden files only if the pattern names them."""
    if not isinstance(pattern, str) or not pattern:
        raise InputError(f"{folder / 'README.md'}: has the data_files {pattern!r}; expected paths in the folder")
    literal = _inside(base, pattern)
    if literal.is_file():
        return [literal]
    pattern = f"{pattern.rstrip('/')}/**" if literal.is_dir() else pattern
    recursive = "**" in pattern
    found = glob.glob(pattern, root_dir=base, recursive=recursive)
    files = sorted(base / name for name in found if (base / name).is_file())
    files = [file for file in files if not _is_record(file) and not (recursive and _is_hidden(file, base))]
    if not files:
        raise InputError(f"{folder / 'README.md'}: names {pattern!r} as data, but there is no such file in {base}")
    return files


def _inside(folder: Path, name: str) -> Path:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "://" in name:
        raise InputError(f"{folder / 'README.md'}: names {name!r} as data; expected a path inside the folder")
    return folder / name


def _of_folder(folder: Path) -> DataFiles:
    files = files_under(folder)
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    data = [file for file in files if _is_data(file, folder)]
    _check_all_read(files, folder)
    if images or not data:
        others = [file for file in data if file.suffix.lower() not in _SIDECARS and file.name not in METADATA_NAMES]
        if images and others:
            raise InputError(
                f"{folder}: holds {len(images):,} images and also {_names(others, folder)}; name the file, or the "
                "folder of the images"
            )
        return DataFiles(folder, IMAGES, {"train": files})
    datasets: dict[Path, list[Path]] = {}
    for file in data:
        datasets.setdefault(_dataset_of(file, folder), []).append(file)
    if len(datasets) > 1:
        raise InputError(
            f"{folder}: could be {len(datasets)} datasets: {_names(datasets, folder)}; name one of them, or list their "
            "files under configs in a README.md"
        )
    ((root, files),) = datasets.items()
    if root != folder:
        return find_data_files(root)
    return DataFiles(folder, _format_of(files, folder), _split(files, folder))


def files_under(folder: Path) -> list[Path]:
    """All files below a folder, in order; links to folders are followed.

    Raises:
        InputError: one of the folders cannot be read.
    """
    seen, files = set(), []

    def refuse(error: OSError):
        raise InputError(f"{error.filename}: cannot be read ({error.strerror}); give access to it, or move it away")

    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        files += [Path(parent, name) for name in names]
    return sorted(files)


def _is_data(file: Path, root: Path) -> bool:
    return file.suffix.lower() in FILE_FORMATS and not _is_record(file) and not _is_hidden(file, root)


def _check_all_read(files: list[Path], root: Path) -> None:
    """Raise `InputError` if one of the files holds rows in a form that is not read.

    That is another format, or a packed file (`rows.jsonl.gz`). Archives such as `images.zip` are left alone.
    """

    def is_unread(file: Path) -> bool:
        suffix, inner = file.suffix.lower(), Path(file.stem).suffix.lower()
        is_packed = suffix in _PACKED and (inner in _UNREAD_TABLES or inner in FILE_FORMATS.keys() - {".tar"})
        return (is_packed or suffix in _UNREAD_TABLES) and not _is_hidden(file, root)

    if unread := [file for file in files if is_unread(file)]:
        raise InputError(
            f"{root}: holds {_names(unread, root)}, which cannot be read; unpack or convert to one of"
            f" {', '.join(FILE_FORMATS)}, or name the file to read"
        )


def _is_record(file: Path) -> bool:
    return file.name in _RECORDS or file.name == "README.md"


def _is_hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _dataset_of(file: Path, root: Path) -> Path:
    """The folder of the dataset of a file: the file's own folder, or the one above `data/` or a split's folder."""
    folder = file.parent
    while folder != root and (folder.name == "data" or folder.name.lower() in _SPLIT_WORDS):
        folder = folder.parent
    return folder


def _format_of(files: list[Path], folder: Path) -> str:
    if any(file.suffix.lower() in IMAGE_SUFFIXES for file in files):
        return IMAGES
    by_suffix = {file.suffix.lower(): file for file in files}
    if len(by_suffix) > 1:
        raise InputError(
            f"{folder}: holds {_names(by_suffix.values(), folder)}, which could be {len(by_suffix)} datasets; name one "
            "file, or list the files under configs in a README.md"
        )
    (suffix,) = by_suffix
    if suffix not in FILE_FORMATS:
        raise InputError(
            f"{by_suffix[suffix]}: unknown file type {suffix!r}; expected one of {', '.join(FILE_FORMATS)}"
        )
    return FILE_FORMATS[suffix]


def _split(files: list[Path], root: Path) -> dict[str, list[Path]]:
    by_split: dict[str, list[Path]] = {}
    unnamed: list[Path] = []
    for file in files:
        split = _split_of(file, root)
        (unnamed if split is None else by_split.setdefault(split, [])).append(file)
    if not by_split:
        return {"train": unnamed}
    if unnamed:
        named = [file for files in by_split.values() for file in files]
        raise InputError(
            f"{root}: some files are called for a split ({_names(named, root)}) and some are not "
            f"({_names(unnamed, root)}); name one file, or list the files under configs in a README.md"
        )
    return by_split


def _split_of(file: Path, root: Path) -> str | None:
    words = [*re.split(r"[^a-z]+", file.stem.lower()), *reversed(file.parent.relative_to(root).parts)]
    return next((_SPLIT_WORDS[word.lower()] for word in words if word.lower() in _SPLIT_WORDS), None)


def _names(paths, root: Path) -> str:
    names = sorted(str(path.relative_to(root)) for path in paths)
    shown = ["." if name == "." else name for name in names[:8]]
    return ", ".join(shown) + (f" and {len(names) - 8:,} more" if len(names) > 8 else "")


def _is_list_of_dicts(value) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)
