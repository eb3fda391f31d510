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

from unicorn_hf.errors import InputError

# Suffix of a data file -> name of the `datasets` builder that reads it.
FILE_FORMATS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".txt": "text"}


def read_dataset(source, name: str | None = None, split: str = "train", streaming: bool = False):
    """One split of a dataset as a `datasets.Dataset`, or, with `streaming`, as a `datasets.IterableDataset`.

    Args:
        source: a `datasets.Dataset` (returned as it is), a folder that `load_dataset` reads, a file (Parquet, JSON
            lines, CSV, text), or the id of a dataset on the Hub.
        name: the configuration, where the source has several.
        split: the split to read.
        streaming: read the rows when they are asked for, and keep none.

    Raises:
        InputError: the source does not exist, cannot be read, or has no row.
    """
    import datasets

    if isinstance(source, datasets.Dataset | datasets.IterableDataset):
        return source
    path = Path(source)
    try:
        if path.is_file():
            if path.suffix not in FILE_FORMATS:
                raise InputError(
                    f"{path}: unknown file type {path.suffix!r}; expected one of {', '.join(FILE_FORMATS)}"
                )
            dataset = datasets.load_dataset(
                FILE_FORMATS[path.suffix], data_files=str(path), split="train", streaming=streaming
            )
        elif path.is_dir() or (not path.is_absolute() and str(source).count("/") <= 1 and not path.suffix):
            dataset = datasets.load_dataset(str(source), name, split=split, streaming=streaming)
        else:
            raise InputError(f"{path}: no such file or folder; expected a dataset folder, a data file or a Hub id")
        is_empty = next(iter(dataset), None) is None if streaming else len(dataset) == 0
    except InputError:
        raise
    except Exception as error:  # `datasets` raises dozens of types here; all mean that the source can't be read
        reason = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{source}: cannot be read as a dataset ({reason})") from error
    if is_empty:
        raise InputError(f"{source}: is empty; expected at least one row")
    return dataset


def check_columns(dataset, *required: str, source) -> None:
    """Raise `InputError` unless `dataset` has every column in `required`."""
    for column in required:
        if column not in dataset.column_names:
            raise InputError(f"{source}: has no column {column!r}; its columns are {', '.join(dataset.column_names)}")


def read_provenance(source) -> dict:
    """Where each column of vectors of a dataset folder or Hub dataset comes from; empty where the card does not say."""
    from huggingface_hub import DatasetCard, hf_hub_download
    from huggingface_hub.errors import HFValidationError

    if not isinstance(source, str | Path):
        return {}
    card = Path(source) / "README.md"
    if not card.is_file():
        if Path(source).exists() or Path(source).is_absolute():
            return {}
        try:
            card = hf_hub_download(str(source), "README.md", repo_type="dataset")
        except (OSError, HFValidationError):  # no card, no such id, or no way to the Hub
            return {}
    return DatasetCard.load(card).data.to_dict().get("unicorn", {})


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
