"""The folder that a step writes: shards in `data/`, and a card that `datasets.load_dataset(folder)` reads."""

from pathlib import Path

from unicorn_hf.data.staging import new_folder


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

    from unicorn_hf.data.parquet_shards import write_parquet_shards

    tables = dataset.with_format("arrow").iter(1000)
    write_parquet_shards(map(embed_table_storage, tables), folder, dataset.features, shard_size=shard_size, split=split)


def feature_text(feature) -> str:
    """A feature as a person reads it: `List(float16, length=64)`."""
    return str(feature).replace("Value('", "").replace("')", "")
