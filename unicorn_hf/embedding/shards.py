"""A dataset cut into shards. The same dataset always gives the same shards, and any rank can read any of them."""

import dataclasses
import hashlib
import os
from pathlib import Path

import datasets
from datasets.fingerprint import Hasher

from unicorn_hf.data.data_files import IMAGES, DataFiles, files_under, find_data_files
from unicorn_hf.data.sources import open_builder, read_dataset
from unicorn_hf.embedding.text_image_file import SIDES, is_text_image_file, read_side
from unicorn_hf.errors import InputError

# Rows per shard: enough texts to sort by length, few enough images that a killed run loses little.
MAX_ROWS = {"text": 10_000, "image": 1_000}


def open_shards(data, *, name: str | None = None, split: str = "train", image_root=None):
    """`data` as `RowShards`, or as `TarShards` for WebDataset tars.

    Args:
        data: any source of `read_dataset`, a tar, a folder of tars, or a ReVision data file.
        name: the configuration; for a ReVision data file its side, `texts` or `images`.
        image_root: the folder that image paths in a ReVision data file are relative to.

    Raises:
        InputError: it cannot be read.
    """
    if isinstance(data, str | Path) and is_text_image_file(data):
        if name not in SIDES:
            raise InputError(f"{data}: has no configuration {name!r}; it has {' and '.join(SIDES)}")
        dataset = read_side(data, name, image_root)
        if name == "images":
            dataset = dataset.cast_column("image", datasets.Image(decode=False))
        return RowShards(dataset, file_fingerprint(Path(data)))
    kind = None
    if isinstance(data, str | Path) and Path(data).exists():
        found = find_data_files(data, name)
        if found.format == "webdataset":
            return TarShards(found.of_split(split))
        kind = "image" if found.format == IMAGES else None
    dataset = read_dataset(data, name, split)
    dataset = _undecoded(dataset)
    on_disk = not isinstance(data, datasets.Dataset) and Path(data).exists()
    return RowShards(dataset, file_fingerprint(Path(data)) if on_disk else Hasher.hash(dataset), kind)


class RowShards:
    """Ranges of rows of a `datasets.Dataset`.

    Attributes:
        features, column_names: of the rows.
        fingerprint: changes when the source does.
        num_rows: of the whole dataset.
        kind: `image` if the source is a folder of images, whatever columns its metadata adds; else None.
    """

    def __init__(self, dataset: datasets.Dataset, fingerprint: str, kind: str | None = None):
        self.dataset = dataset
        self.features = dataset.features
        self.column_names = dataset.column_names
        self.fingerprint = fingerprint
        self.kind = kind
        self.num_rows = len(dataset)
        self.shard_rows = self.num_rows

    def cut(self, kind: str, shard_rows: int | None = None) -> int:
        """Choose the rows per shard, by default 1/16 of the dataset within limits; returns the number of shards."""
        limit = MAX_ROWS[kind]
        self.shard_rows = shard_rows or min(limit, max(limit // 10, -(-self.num_rows // 16)))
        return -(-self.num_rows // self.shard_rows)

    def read(self, shard: int) -> datasets.Dataset:
        start = shard * self.shard_rows
        return self.dataset.select(range(start, min(start + self.shard_rows, self.num_rows)))

    def place(self, shard: int, row: int) -> dict:
        """The place of a shard's row in the source."""
        return {"row": shard * self.shard_rows + row}


class TarShards:
    """WebDataset tars, one per shard. Members of one sample share their name up to the first dot.

    Attributes:
        features, column_names: those of the first tar; the others must have the same.
        fingerprint: changes when the source does.
        num_rows: None, since the tars would have to be read to count them.
    """

    def __init__(self, tars: list[Path]):
        self.tars = tars
        self.fingerprint = hashlib.sha256("".join(map(file_fingerprint, tars)).encode()).hexdigest()[:16]
        self.num_rows = self.kind = None
        self.features = self._stream(0).features
        self.column_names = list(self.features)

    def cut(self, kind: str, shard_rows: int | None = None) -> int:
        if shard_rows:
            raise InputError("shard_rows cannot be used with WebDataset tars: each tar is one shard")
        return len(self.tars)

    def read(self, shard: int) -> datasets.Dataset:
        try:
            rows = list(self._stream(shard))
        except InputError:
            raise
        except Exception as error:  # tarfile, and the decoders of each member, raise many types
            raise InputError(f"{self.tars[shard]}: cannot be read as a WebDataset tar ({error})") from error
        columns = {name: [row.get(name) for row in rows] for name in self.features}
        return datasets.Dataset.from_dict(columns, features=self.features)

    def place(self, shard: int, row: int) -> dict:
        return {"tar": self.tars[shard].name, "row": row}

    def _stream(self, shard: int):
        tar = self.tars[shard]
        try:
            found = DataFiles(tar, "webdataset", {"train": [tar]})
            stream = open_builder(found, found.splits).as_streaming_dataset("train")
        except Exception as error:
            raise InputError(f"{tar}: cannot be read as a WebDataset tar ({str(error).splitlines()[0]})") from error
        return _undecoded(stream)


def _undecoded(dataset):
    """With the files of its pictures and sounds in place of what is in them."""
    for column, feature in dataset.features.items():
        if isinstance(feature, datasets.Image | datasets.Audio):
            dataset = dataset.cast_column(column, dataclasses.replace(feature, decode=False))
    return dataset


def file_fingerprint(path: Path) -> str:
    """A hash of the names, sizes and times of change of a file, or of all files in a folder."""
    digest = hashlib.sha256()
    for file in files_under(path) if path.is_dir() else [path]:
        status = file.stat() if file.exists() else file.lstat()  # a broken link: its row will fail
        digest.update(os.fsencode(file.relative_to(path)))
        digest.update(f"\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}\n".encode())
    return digest.hexdigest()[:16]
