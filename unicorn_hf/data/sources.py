"""Any source of rows as a `datasets.Dataset`: a path, a Hub id, any kind of file, a folder of images."""

import codecs
import importlib.metadata
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Union

from unicorn_hf.data.data_files import IMAGES, SAVED, DataFiles, find_data_files, is_hub_id, read_card, state_of
from unicorn_hf.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

# What every step reads: a folder, a file or a Hub id, or a dataset in memory.
Source = Union[str, Path, "Dataset"]

_MOST_DEPTH = 100  # of JSON, whose readers crash the process on what is nested much deeper
_MOST_COLUMNS = 2_000  # of CSV: more take minutes
_JSON_BLOCK = 8 << 20  # bytes of JSON lines whose types are inferred together; `datasets` uses somewhat more
# Columns of CSV files that are text even if every cell is a number; so is any column that ends with _id.
_TEXT_COLUMNS = ("id", "caption", "text", "seed", "domain", "question", "answer", "task", "kind", "category")
# Cells that can be read as numbers without loss: no leading zero or plus sign, no more digits than the type can hold.
_INTEGER, _FRACTION = r"-?(?:0|[1-9]\d{0,17})", r"-?(?:0|[1-9]\d{0,15})?(?:\.\d{1,17})?(?:[eE][+-]?\d{1,3})?"


def read_dataset(source, name: str | None = None, split: str = "train", streaming: bool = False):
    """One split of a dataset as a `datasets.Dataset`, or, with `streaming`, as a `datasets.IterableDataset`.

    Args:
        source: a `datasets.Dataset` (returned as it is); a file (Parquet, Arrow, JSON lines, CSV, text, WebDataset); a
            folder of such files or of images (see `find_data_files`); or `org/name` of a dataset on the Hub.
        name: the configuration, where the source has several.
        split: the split to read, in the notation of `datasets` (`train[:100]` and `train+test` too).
        streaming: read rows only on demand, and keep none in memory.

    Raises:
        InputError: the source does not exist, cannot be read, could be several datasets, or has no row; a dataset in
            memory is asked for another configuration or split.
    """
    import datasets

    if isinstance(source, datasets.Dataset | datasets.IterableDataset):
        if name is not None or split not in ("train", str(source.split)):
            wanted = f"configuration {name!r}" if name is not None else f"split {split!r}"
            raise InputError(f"The dataset is in memory and has no {wanted} to be chosen; choose it where it is loaded")
        return source
    if not str(source).strip():
        raise InputError(
            "The name of the data is empty; expected a dataset folder, a data file, or org/name on the Hub"
        )
    try:
        if Path(source).expanduser().exists():
            dataset = _read_files(find_data_files(source, name), split, streaming)
        else:
            if not is_hub_id(source):
                raise InputError(
                    f"{source}: no such file or folder; expected a dataset folder, a data file, or org/name on the Hub"
                )
            dataset = datasets.load_dataset(source, name, split=split, streaming=streaming)
        is_empty = next(iter(dataset), None) is None if streaming else len(dataset) == 0
    except InputError:
        raise
    except Exception as error:  # `datasets` raises dozens of types here; each means that the source can't be read
        reason = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{source}: cannot be read as a dataset ({reason})") from error
    if is_empty:
        raise InputError(f"{source}: is empty; expected at least one row")
    return dataset


def _read_files(found: DataFiles, split: str, streaming: bool):
    import datasets

    names = [part.partition("[")[0].strip() for part in split.split("+")]
    if found.format == SAVED:
        saved = datasets.load_from_disk(str(found.root))
        splits = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
        if missing := [name for name in names if name not in splits]:
            raise InputError(f"{found.root}: has no split {missing[0]!r}; its splits are {', '.join(splits)}")
        dataset = _select(splits, split)
        return dataset.to_iterable_dataset() if streaming else dataset
    if found.format == IMAGES:
        from unicorn_hf.data.image_folder import read_image_folder

        dataset = _select({name: read_image_folder(found, name, read_dataset) for name in names}, split)
        return dataset.to_iterable_dataset() if streaming else dataset
    files = {name: found.of_split(name) for name in names}
    paths = [path for each in files.values() for path in each]
    features = None
    if found.format in ("json", "csv", "text") and "encoding" not in found.config:
        for path in paths:
            _check_encoding(path)
    if found.format in ("json", "csv", "text") and all(map(_is_blank, files[names[0]])):
        raise InputError(f"{found.root}: is empty; expected at least one row")
    if found.format == "json":
        for path in paths:
            _check_depth(path)
    if found.format == "csv":
        features = _card_features(found) or csv_features(found, files)
    elif (found.format == "json" and streaming) or _has_text_and_numbers(found, files):
        features = features_of_all(found, files)
    builder = open_builder(found, files, features=features)
    if streaming:
        return builder.as_streaming_dataset(split=split)
    try:
        builder.download_and_prepare()
    except datasets.exceptions.DatasetGenerationError:
        if found.format not in ("json", "parquet"):
            raise
        import pyarrow.parquet as pq

        if found.format == "parquet" and not any(pq.read_metadata(path).num_rows for path in files[names[0]]):
            raise InputError(f"{found.root}: is empty; expected at least one row") from None
        # The builder infers types from the first rows or the first file, where a column may be all null.
        builder = open_builder(found, files, features=features_of_all(found, files))
        builder.download_and_prepare()
    return builder.as_dataset(split=split)


def _check_encoding(path: Path) -> None:
    """Raise `InputError` where a text file begins with the mark of another encoding (what Windows calls Unicode)."""
    with path.open("rb") as file:
        if file.read(4).startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)):
            raise InputError(f"{path}: is in UTF-16 or UTF-32, by its first bytes; expected UTF-8; save it as UTF-8")


def _check_depth(path: Path) -> None:
    """Raise `InputError` where JSON is nested deeper than any data are."""
    import numpy as np

    with path.open("rb") as file:
        is_array = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
        file.seek(0)
        for number, line in enumerate([file.read()] if is_array else file):
            if line.count(b"[") + line.count(b"{") <= _MOST_DEPTH:
                continue
            marks = np.frombuffer(re.sub(rb'"(?:[^"\\]|\\.)*"?', b"", line), np.uint8)
            steps = np.isin(marks, (*b"[{",)).astype(np.int32) - np.isin(marks, (*b"]}",))
            if (depth := int(steps.cumsum().max(initial=0))) > _MOST_DEPTH:
                place = "" if is_array else f", line {number + 1}"
                raise InputError(
                    f"{path}{place}: is nested {depth:,} deep; expected rows that are nested {_MOST_DEPTH} deep at most"
                )


def _select(splits: dict, split: str):
    """The rows that `split` selects, in the notation of `datasets`: `train`, `train[:100]`, `train+test[10%:]`."""
    import datasets

    sizes = {name: len(dataset) for name, dataset in splits.items()}
    parts = [
        splits[part.splitname].select(range(part.from_, part.to))
        for part in datasets.ReadInstruction.from_spec(split).to_absolute(sizes)
    ]
    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)


def _is_blank(path: Path) -> bool:
    """Whether a text file has no row: only white space, or an empty JSON array."""
    with path.open("rb") as file:
        return re.fullmatch(rb"(\xef\xbb\xbf)?\s*(\[\s*\])?\s*", file.read(1 << 12)) is not None and not file.read(1)


def open_builder(found: DataFiles, files: dict[str, list[Path]], features=None):
    """The builder of `datasets` for exactly these files; its cache identifies them by path, size and times of change.

    `load_dataset` would read the paths as patterns, leave some files out because of their names, and identify a folder
    with a card by the folder's last name alone.
    """
    from datasets.data_files import DataFilesDict, DataFilesList
    from datasets.packaged_modules.arrow.arrow import Arrow
    from datasets.packaged_modules.csv.csv import Csv
    from datasets.packaged_modules.json.json import Json
    from datasets.packaged_modules.parquet.parquet import Parquet
    from datasets.packaged_modules.text.text import Text
    from datasets.packaged_modules.webdataset.webdataset import WebDataset

    builders = {
        "arrow": Arrow,
        "csv": Csv,
        "json": Json,
        "parquet": Parquet,
        "text": Text,
        "webdataset": WebDataset,
    }
    builder_class = builders[found.format]
    for path in (path for paths in files.values() for path in paths):
        if "::" in str(path):  # `datasets` ends a path at its first "::" and reads the rest as a second one
            raise InputError(f"{path}: `datasets` reads no path with '::' in it; rename the file or the folder")
    listed = {
        split: DataFilesList([str(path) for path in paths], origin_metadata=state_of(paths))
        for split, paths in files.items()
    }
    options = _reading_options(found, builder_class)
    # The newest `datasets` skips a byte order mark itself; 4.7 fails on it.
    if found.format == "json" and any(map(_has_byte_order_mark, (path for paths in files.values() for path in paths))):
        options = {"encoding": "utf-8-sig"} | options
    return builder_class(data_files=DataFilesDict(listed), features=features or _card_features(found), **options)


def _reading_options(found: DataFiles, builder_class) -> dict:
    """The options for reading these files: our defaults, then the card's configuration."""
    import dataclasses

    known = {field.name for field in dataclasses.fields(builder_class.BUILDER_CONFIG_CLASS)}
    known -= {"name", "version", "data_dir", "data_files", "description", "features"}
    options = {key: value for key, value in found.config.items() if key in known}
    if found.format == "csv":  # NA, None and null are words, not missing values
        options = {"keep_default_na": False, "na_values": [""]} | options
        if importlib.metadata.version("pandas") < "3.1":  # its default parser gets the last bit of some numbers wrong
            options = {"float_precision": "round_trip"} | options
    if found.format == "text":  # a byte order mark at the beginning is not part of the text
        options = {"encoding": "utf-8-sig"} | options
    return options


def _has_byte_order_mark(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8


def csv_features(found: DataFiles, files: dict[str, list[Path]]):
    """The types of the columns of CSV files: a number type if every cell is a plainly written number, else text.

    pandas infers types from the first ten thousand rows: it would turn `0012` into 12, and fail on later text.

    Raises:
        InputError: there is no row.
    """
    import datasets
    import pandas
    from datasets.packaged_modules.csv.csv import Csv

    options = Csv.BUILDER_CONFIG_CLASS(**_reading_options(found, Csv)).pd_read_csv_kwargs
    types: dict[str, set[str]] = {}
    for path in (path for paths in files.values() for path in paths):
        for table in pandas.read_csv(path, iterator=True, dtype=str, **options):
            if len(table.columns) > _MOST_COLUMNS:
                raise InputError(f"{path}: has {len(table.columns):,} columns; expected {_MOST_COLUMNS:,} at most")
            for name, cells in table.items():
                types.setdefault(name, set()).update(_types_of(cells))
    if not any(types.values()):
        raise InputError(f"{found.root}: is empty; expected at least one row")
    return datasets.Features({str(name): datasets.Value(_type_of(str(name), found)) for name, found in types.items()})


def _types_of(cells) -> set[str]:
    """The types that occur in the cells of a column; `null` for an empty cell."""
    given = cells.dropna()
    types = {"null"} if len(given) < len(cells) else set()
    for name, pattern in (("int64", _INTEGER), ("float64", _FRACTION)):
        fitting = given.str.fullmatch(pattern)
        types |= {name} if fitting.any() else set()
        given = given[~fitting]
    return types | ({"string"} if len(given) else set())


def _type_of(column: str, types: set[str]) -> str:
    if "string" in types or types == {"null"} or column in _TEXT_COLUMNS or column.endswith("_id"):
        return "string"
    return "int64" if types == {"int64"} else "float64"


def _has_text_and_numbers(found: DataFiles, files: dict[str, list[Path]]) -> bool:
    """Whether a column of JSON lines or Parquet holds text in one place and numbers in another.

    `datasets` takes the type of the first: after a file with the id 12, the id "0012" of the next one would become 12.
    """
    import pyarrow as pa

    paths = [path for paths in files.values() for path in paths]
    if found.format not in ("json", "parquet") or found.config.get("field"):
        return False
    if len(paths) == 1 and (found.format == "parquet" or paths[0].stat().st_size < _JSON_BLOCK):
        return False
    try:
        return bool(_columns_of_text(_schemas(found, paths)))
    except pa.ArrowException:  # reading the rows reports what is wrong
        return False


def _columns_of_text(schemas) -> set[str]:
    """The names of the columns that hold text in some schemas and numbers in others."""
    import pyarrow.types as pt

    text = {field.name for schema in schemas for field in schema if pt.is_string(field.type)}
    text |= {field.name for schema in schemas for field in schema if pt.is_large_string(field.type)}
    number = {field.name for schema in schemas for field in schema if pt.is_primitive(field.type)}
    return text & number


def features_of_all(found: DataFiles, files: dict[str, list[Path]]):
    """The common types of all JSON-lines or Parquet files; a column may begin with any number of nulls.

    Raises:
        pyarrow.ArrowException: a column has no common type, or Parquet files differ in their columns.
    """
    import datasets
    import pyarrow as pa

    schemas = _schemas(found, [path for paths in files.values() for path in paths])
    if found.format == "parquet" and len({tuple(sorted(schema.names)) for schema in schemas}) > 1:
        raise pa.ArrowInvalid("the files have different columns")
    text = _columns_of_text(schemas)
    schemas = [
        pa.schema([pa.field(field.name, pa.string()) if field.name in text else field for field in schema])
        for schema in schemas
    ]
    return datasets.Features.from_arrow_schema(pa.unify_schemas(schemas, promote_options="permissive"))


def _schemas(found: DataFiles, paths: list[Path]) -> list:
    import pyarrow.parquet as pq

    if found.format == "json":
        return [schema for path in paths for schema in _json_schemas(path)]
    return [pq.read_schema(path).remove_metadata() for path in paths]


def _json_schemas(path: Path) -> Iterator:
    import io
    import json

    import pyarrow as pa
    import pyarrow.json

    with path.open("rb") as file:
        file.seek(len(codecs.BOM_UTF8) if _has_byte_order_mark(path) else 0)
        if file.peek(1)[:1] == b"[":  # one array of all rows
            rows = json.load(file)
            yield pa.Table.from_pylist([row if isinstance(row, dict) else {"text": row} for row in rows]).schema
            return
        while lines := file.readlines(_JSON_BLOCK):
            block = b"".join(lines)
            options = pyarrow.json.ReadOptions(block_size=max(1 << 20, len(block)))
            yield pyarrow.json.read_json(io.BytesIO(block), read_options=options).schema


def _card_features(found: DataFiles):
    """The column types from the card's `dataset_info`; None if it has none."""
    from datasets.info import DatasetInfosDict
    from huggingface_hub import DatasetCardData

    metadata = read_card(found.root) if found.config else {}
    if "dataset_info" not in metadata:
        return None
    infos = DatasetInfosDict.from_dataset_card_data(DatasetCardData(dataset_info=metadata["dataset_info"]))
    info = infos.get(str(found.config.get("config_name", "default")))
    return None if info is None else info.features


def check_columns(dataset, *required: str, source) -> None:
    """Raise `InputError` unless `dataset` has every column in `required`."""
    for column in required:
        if column not in dataset.column_names:
            raise InputError(f"{source}: has no column {column!r}; its columns are {', '.join(dataset.column_names)}")
