"""The folder that a step writes: Arrow shards in `data/`, and a card that `datasets.load_dataset(folder)` reads."""

from pathlib import Path

from unicorn_hf.data.shards import Shards, write_shards
from unicorn_hf.data.staging import new_folder


def write_dataset(dataset, output, *, title: str, provenance: dict | None = None) -> Path:
    """Write `dataset` as Arrow shards with a card. Returns the folder.

    Raises:
        InputError: `output` exists and is not an empty folder.
    """
    with new_folder(output) as folder:
        write_rows(dataset, folder, title=title, provenance=provenance)
    return Path(output)


def write_rows(dataset, folder: Path, *, title: str, provenance: dict | None = None) -> Shards:
    """Write `dataset` and its card to a folder, which may hold other files. Images given as paths are embedded."""
    from datasets.table import embed_table_storage

    tables = map(embed_table_storage, dataset.with_format("arrow").iter(1000))
    shards = write_shards(tables, folder / "data", dataset.features.arrow_schema)
    columns = {name: feature_text(dataset.features[name]) for name in dataset.column_names}
    write_card(
        folder,
        title=title,
        num_rows=len(dataset),
        columns=columns,
        provenance=provenance,
        fingerprint=shards.fingerprint,
    )
    return shards


def write_card(
    folder, *, title: str, num_rows: int, columns: dict[str, str], provenance: dict | None = None, fingerprint: str
) -> None:
    """Write the card of a folder with shards `data/train-*.arrow`.

    Args:
        columns: column name -> its type in words.
        fingerprint: a hash of the shards. The cache of `load_dataset` identifies a folder with a card only by the
            folder's last name and the card's configurations; the hash keeps two such folders apart.
    """
    import yaml

    config = {
        "config_name": "default",
        "description": f"content {fingerprint}",
        "data_files": [{"split": "train", "path": "data/train-*.arrow"}],
    }
    metadata = {"pretty_name": title, "configs": [config], "unicorn": provenance or {}}
    rows = "\n".join(f"| `{name}` | {kind} |" for name, kind in columns.items())
    text = f"# {title}\n\n{num_rows:,} rows.\n\n| column | type |\n| --- | --- |\n{rows}\n"
    card = f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---\n\n{text}"
    (Path(folder) / "README.md").write_text(card, encoding="utf-8")


def feature_text(feature) -> str:
    """A feature as a person reads it: `List(float16, length=64)`."""
    return str(feature).replace("Value('", "").replace("')", "")
