"""How every step reads a dataset and writes a dataset.

A dataset on disk is a folder of Parquet shards with a card (`README.md`) that `datasets.load_dataset(folder)` reads. It
is written to a hidden folder beside its place and renamed when complete, so a folder under its final name is whole.
The card's metadata says under `unicorn` where each column of vectors comes from (its provenance), for instance
`{"image_embeds": {"encoder": "sandbox", "embed_dim": 64, "transfer": "realign"}}`.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from unicorn_hf.data_files import (
    PICTURES,
    SAVED,
    DataFiles,
    find_data_files,
    is_hub_id,
    read_card,
    state_of,
)
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
        from unicorn_hf.picture_folder import read_pictures

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


def read_provenance(source) -> dict:
    """Where each column of vectors of a dataset folder or Hub dataset comes from; empty where the card does not say.

    Raises:
        InputError: there is a card, and it cannot be read.
    """
    from huggingface_hub import hf_hub_download

    if not isinstance(source, str | Path):
        return {}
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not (folder / "README.md").is_file():
            with contextlib.suppress(InputError):  # no dataset, or several: nothing is said about it
                folder = find_data_files(folder).root
    elif is_hub_id(source):
        try:
            folder = Path(hf_hub_download(source, "README.md", repo_type="dataset")).parent
        except OSError:  # no card, or no way to the Hub
            return {}
    said = read_card(folder).get("unicorn") or {}
    if not isinstance(said, dict) or not all(isinstance(value, dict | str) for value in said.values()):
        raise InputError(f"{folder / 'README.md'}: holds {said!r} under unicorn; expected what each column comes from")
    return said


def write_dataset(dataset, output, *, title: str, provenance: dict | None = None) -> Path:
    """Write `dataset` as Parquet shards with a card. Returns the folder.

    Raises:
        InputError: `output` exists and is not an empty folder.
    """
    with new_folder(output) as folder:
        write_shards(dataset, folder / "data")
        columns = {name: feature_text(dataset.features[name]) for name in dataset.column_names}
        write_card(folder, title=title, num_rows=len(dataset), columns=columns, provenance=provenance)
    return Path(output)


def write_card(folder, *, title: str, num_rows: int, columns: dict[str, str], provenance: dict | None = None) -> None:
    """Write the card of a folder with shards `data/train-*.parquet`; `columns` maps a name to its type in words."""
    from huggingface_hub import DatasetCard, DatasetCardData

    config = {
        "config_name": "default",
        "description": f"content {fingerprint(folder)}",
        "data_files": [{"split": "train", "path": "data/train-*.parquet"}],
    }
    card_data = DatasetCardData(
        pretty_name=title,
        configs=[config],
        unicorn=provenance or {},
    )
    rows = "\n".join(f"| `{name}` | {kind} |" for name, kind in columns.items())
    text = f"# {title}\n\n{num_rows:,} rows.\n\n| column | type |\n| --- | --- |\n{rows}\n"
    DatasetCard(f"---\n{card_data}\n---\n\n{text}").save(folder / "README.md")


def fingerprint(folder) -> str:
    """A hash of the shards' Parquet footers (sizes, offsets, statistics).

    In a card it keeps `load_dataset` from taking one folder for another: its cache knows a folder with a card by the
    folder's last name and the card's configurations only.
    """
    import hashlib

    digest = hashlib.sha256()
    for shard in sorted(Path(folder).rglob("*.parquet")):
        with shard.open("rb") as file:
            file.seek(max(0, shard.stat().st_size - (64 << 10)))
            digest.update(file.read())
    return digest.hexdigest()[:16]


def write_shards(dataset, folder: Path, split: str = "train", shard_size: int = 500 << 20) -> None:
    """Write `dataset` to `folder` as `<split>-00000-of-0000N.parquet`, pictures that it holds as paths included."""
    from datasets.table import embed_table_storage

    from unicorn_hf.parquet_shards import write_parquet_shards

    tables = dataset.with_format("arrow").iter(1000)
    write_parquet_shards(map(embed_table_storage, tables), folder, dataset.features, shard_size=shard_size, split=split)


def feature_text(feature) -> str:
    """A feature as a person reads it: `List(float16, length=64)`."""
    return str(feature).replace("Value('", "").replace("')", "")


@contextlib.contextmanager
def new_folder(output) -> Iterator[Path]:
    """A folder that appears under the name `output` only when the block has ended well.

    Raises:
        InputError: `output` exists and is not an empty folder.
    """
    output = Path(output)
    check_new_folder(output)
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if output.exists():
            output.rmdir()
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_new_folder(output) -> None:
    """Raise `InputError` where `output` is something else than a missing or an empty folder."""
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output}: exists and is not an empty folder; name another folder, or remove this one")


def write_json(value, path) -> None:
    """Write `value` as JSON to `path`, through a temporary name."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.rename(path)
