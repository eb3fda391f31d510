"""Any source of rows as a `datasets.Dataset`: a path, a Hub id, any kind of file, a folder of pictures."""

from collections.abc import Iterator
from pathlib import Path

from unicorn_hf.data.data_files import PICTURES, SAVED, DataFiles, find_data_files, is_hub_id, read_card, state_of
from unicorn_hf.errors import InputError


def read_dataset(source, name: str | None = None, split: str = "train", streaming: bool = False):
    """One split of a dataset as a `datasets.Dataset`, or, with `streaming`, as a `datasets.IterableDataset`.

    Args:
        source: a `datasets.Dataset` (returned as it is); a file (Parquet, Arrow, JSON lines, CSV, text, WebDataset); a
            folder of such files or of pictures (see `find_data_files`); or `org/name` of a dataset on the Hub.
        name: the configuration, where the source has several.
        split: the split to read; as `datasets` has it, `train[:100]` and `train+test` too.
        streaming: read the rows when they are asked for, and keep none.

    Raises:
        InputError: the source does not exist, cannot be read, could be several datasets, or has no row.
    """
    import datasets

    if isinstance(source, datasets.Dataset | datasets.IterableDataset):
        return source
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
    except Exception as error:  # `datasets` raises dozens of types here; all mean that the source can't be read
        reason = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{source}: cannot be read as a dataset ({reason})") from error
    if is_empty:
        raise InputError(f"{source}: is empty; expected at least one row")
    return dataset


def _read_files(found: DataFiles, split: str, streaming: bool):
    import datasets

    names = [part.partition("[")[0].strip() for part in split.split("+")]
    if found.format == SAVED:
        dataset = datasets.load_from_disk(str(found.root))
        if isinstance(dataset, datasets.DatasetDict):
            if split not in dataset:
                raise InputError(f"{found.root}: has no split {split!r}; its splits are {', '.join(dataset)}")
            dataset = dataset[split]
        elif split != "train":
            raise InputError(f"{found.root}: has no split {split!r}; it is one dataset, which counts as train")
        return dataset.to_iterable_dataset() if streaming else dataset
    if found.format == PICTURES:
        from unicorn_hf.data.picture_folder import read_pictures

        dataset = read_pictures(found, split)
        return dataset.to_iterable_dataset() if streaming else dataset
    files = {name: found.of_split(name) for name in names}
    builder = open_builder(found, files)
    if found.format == "json" and streaming:
        builder = open_builder(found, files, features=features_of_all(found, files))
    if streaming:
        return builder.as_streaming_dataset(split=split)
    try:
        builder.download_and_prepare()
    except datasets.exceptions.DatasetGenerationError:
        if found.format not in ("json", "parquet"):
            raise
        # It takes the types from the first rows or the first file, where a column may hold nothing but null.
        builder = open_builder(found, files, features=features_of_all(found, files))
        builder.download_and_prepare()
    return builder.as_dataset(split=split)


def open_builder(found: DataFiles, files: dict[str, list[Path]], features=None):
    """The builder of `datasets` for exactly these files, whose cache knows them by path, size and times of change.

    `load_dataset` would read the paths as patterns, leave some out by their names, and know a folder with a card by the
    folder's last name alone.
    """
    import dataclasses

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
        if "::" in str(path):  # there a path ends at its first "::", and what follows is another's
            raise InputError(f"{path}: `datasets` reads no path with '::' in it; rename the file or the folder")
    listed = {
        split: DataFilesList([str(path) for path in paths], origin_metadata=state_of(paths))
        for split, paths in files.items()
    }
    options = {field.name for field in dataclasses.fields(builder_class.BUILDER_CONFIG_CLASS)}
    options -= {"name", "version", "data_dir", "data_files", "description", "features"}
    options = {key: value for key, value in found.config.items() if key in options}
    if found.format == "csv":
        options.setdefault("converters", {"id": str})  # an id is text: "0012" is not 12
    return builder_class(data_files=DataFilesDict(listed), features=features or _card_features(found), **options)


def features_of_all(found: DataFiles, files: dict[str, list[Path]]):
    """The types of the rows of all JSON-lines or Parquet files, so that a column may begin with any number of nulls.

    Raises:
        pyarrow.ArrowException: a column holds what has no common type, or files of Parquet have other columns.
    """
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = [path for paths in files.values() for path in paths]
    if found.format == "json":
        schemas = [schema for path in paths for schema in _json_schemas(path)]
    else:
        schemas = [pq.read_schema(path).remove_metadata() for path in paths]
        if len({tuple(sorted(schema.names)) for schema in schemas}) > 1:
            raise pa.ArrowInvalid("the files have different columns")
    return datasets.Features.from_arrow_schema(pa.unify_schemas(schemas, promote_options="permissive"))


def _json_schemas(path: Path) -> Iterator:
    import io

    import pyarrow.json

    with path.open("rb") as file:
        while lines := file.readlines(8 << 20):
            block = b"".join(lines)
            options = pyarrow.json.ReadOptions(block_size=max(1 << 20, len(block)))
            yield pyarrow.json.read_json(io.BytesIO(block), read_options=options).schema


def _card_features(found: DataFiles):
    """The types that a card gives its columns, under `dataset_info`; None where it gives none."""
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
