"""`publish` writes our steps' outputs in the Hub's layout, `import_released` the papers' files; both with a card.

Both write what the sources generate, as `UnicornBuilder` does, which puts the same rows into the cache of `datasets`.
"""

import contextlib
import logging
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from unicorn_hf.dataset_scripts.config import DatasetOptions, ImportConfig, PublishConfig

from unicorn_hf.data.data_files import is_hub_id
from unicorn_hf.data.provenance import Origin, read_provenance
from unicorn_hf.data.sources import Source
from unicorn_hf.data.staging import new_folder, read_json, write_json
from unicorn_hf.errors import InputError

logger = logging.getLogger(__name__)

# What a Hub repository of the released data may hold that `import_released` can read.
RELEASED_PATTERNS = ["*.json", "*.jsonl", "*.npy", "*.safetensors", "*.ids.txt"]


def publish(
    pretrain: Source,
    instruction: Source | None,
    output: str | Path,
    *,
    config: PublishConfig | None = None,
    provenance: dict | None = None,
    **options,
) -> Path:
    """Write the two published configurations to the folder `output`, with a dataset card.

    Args:
        pretrain: a dataset or dataset folder with `id`, `caption`, `image_embeds`, and `text_embeds` where it has them.
        instruction: a dataset or dataset folder with `id`, `caption`, `task`, `messages`; `image_embeds` are taken from
            `pretrain` by `str(id)` where it has none. None: only the captions are published.
        output: the folder to write.
        config: the options; `options` are fields of `PublishConfig` that replace those of it.
        provenance: where the vectors come from, column -> `{"encoder", "embed_dim", "transfer"}`; what the inputs'
            cards say, by default.

    Returns:
        `output`; `load_dataset(output, "unicorn-1.2m")` and `load_dataset(output, "unicorn-471k-instruction")` read it.

    Raises:
        InputError: an input is damaged, lacks a column, has an id twice or a vector that is not finite; an instruction
            has no vector; the inputs' encoders differ; `output` exists.
    """
    from unicorn_hf.dataset_scripts.sources import INSTRUCTION, PRETRAIN, TableSource

    config = PublishConfig.of(config, options)
    inputs = [pretrain, instruction, config.transfer, *config.steps]
    with _dataset_folder(output, config, inputs) as (folder, scratch):
        skip = {"skip_non_finite": config.skip_non_finite}
        sources = {PRETRAIN: TableSource(PRETRAIN, pretrain, **skip)}
        if instruction is not None:
            sources[INSTRUCTION] = TableSource(INSTRUCTION, instruction, pretrain, scratch=scratch, **skip)
        if provenance is None:
            provenance = _merge_provenance(sources, {PRETRAIN: pretrain, INSTRUCTION: instruction})
        gap = _gap(config.transfer, provenance)
        records = {}
        for step in (*config.steps, pretrain, instruction):
            if isinstance(step, str | Path):
                records[Path(step).name] = _record(Path(step))
        card_facts = {"title": config.title, "provenance": provenance, "steps": records, "gap": gap}
        _write(sources, folder, config, card_facts)
    return Path(output)


def import_released(
    source,
    output: str | Path,
    *,
    config: ImportConfig | None = None,
    **options,
) -> Path:
    """Write the papers' released files in our layout.

    Args:
        source: the Hub id (`Yu2020/Unicorn`), a folder, or one JSON file; files are found by their names.
        output: the folder to write. What was found, and the counts, are in its `summary.json`; every record that
            could not be used is in its `rejected.jsonl`, with the reason.
        config: the options; `options` are fields of `ImportConfig` that replace those of it. The vectors are looked for
            beside the JSON where `embeddings` is None; without any, the rows have none, and `embed` is the next step.

    Raises:
        InputError: no file of a known name; a damaged file; `output` exists.
    """
    from unicorn_hf.dataset_scripts.sources import (
        CONFIGS,
        INSTRUCTION,
        PRETRAIN,
        ReleasedSource,
        expected_and_found,
        find_embeddings,
        find_released,
        has_released_name,
        open_lookup,
    )

    config = ImportConfig.of(config, options)
    embeddings, column = config.embeddings, config.column
    with _dataset_folder(output, config, [source, embeddings]) as (folder, scratch):
        path = Path(source)
        if not path.exists():
            if not is_hub_id(source):
                raise InputError(
                    f"{source}: is neither a file or folder nor a dataset repository, whose name is org/name"
                )
            path = _download(source, config.revision, config.allow_pickle)
        named = {PRETRAIN: config.pretrain, INSTRUCTION: config.instruction}
        if any(named.values()):
            root = path if path.is_dir() else path.parent
            files = {part: root / name if name else None for part, name in named.items()}
            missing = [file for file in files.values() if file is not None and not file.is_file()]
            if missing:
                raise InputError(f"{missing[0]}: no such file; expected one in {source}")
        elif path.is_dir():
            files = {part: find_released(part, path) for part in CONFIGS}
        else:
            files = {part: path if has_released_name(part, path) else None for part in CONFIGS}
        if path.is_dir():
            embeddings = embeddings or find_embeddings(path)
        if not any(files.values()):
            raise InputError(f"{source}: is not of the released files: {expected_and_found(CONFIGS, path)}")
        for part, file in files.items():
            if file is None:
                logger.warning("%s: has no rows for %s: %s", source, part, expected_and_found((part,), path))
        lookup, provenance = None, {}
        if embeddings is not None:
            lookup = open_lookup(
                embeddings, column, skip_non_finite=True, allow_pickle=config.allow_pickle, scratch=scratch
            )
            facts = {"encoder": config.encoder, "embed_dim": lookup.embed_dim, "transfer": config.transfer}
            provenance[column] = {name: value for name, value in facts.items() if value is not None}
        sources = {part: ReleasedSource(part, file, lookup, column) for part, file in files.items() if file}
        title = f"Unicorn, imported from {Path(source).name if Path(source).exists() else source}"
        card_facts = {"title": title, "provenance": provenance, "steps": {}, "gap": {}}
        counts = _write(sources, folder, config, card_facts)
        summary = {
            part: {"file": opened.name, "embeddings": lookup and lookup.name, **counts[part]}
            for part, opened in sources.items()
        }
        write_json(summary, folder / "summary.json")
    return Path(output)


@contextlib.contextmanager
def _dataset_folder(output, options: DatasetOptions, inputs: Iterable) -> Iterator[tuple[Path, Path]]:
    """The folder to write, which takes its name when the block has ended well, and one for temporary files."""
    with new_folder(output, overwrite=options.overwrite, inputs=inputs) as folder:
        scratch = folder / ".vectors"
        scratch.mkdir()
        yield folder, scratch
        shutil.rmtree(scratch)


def _write(sources: dict, folder: Path, options: DatasetOptions, card_facts: dict) -> dict[str, dict]:
    """Write the sources' rows and the card; returns the number of rows, and of rejected records, by configuration."""
    from datasets.utils.py_utils import convert_file_size_to_int
    from unicorn_hf.dataset_scripts.dataset_card import Observed, make_card
    from unicorn_hf.dataset_scripts.released_json import Rejected
    from unicorn_hf.dataset_scripts.sources import PRETRAIN

    from unicorn_hf.data.shards import write_shards
    from unicorn_hf.data.vector_sets import parallel_map
    from unicorn_hf.progress import progress_bar

    def write(item):
        config, source = item
        seen = Observed()
        with (
            Rejected(folder / f".rejected-{config}.jsonl", config) as rejected,
            progress_bar(
                total=source.num_rows, desc=config, unit="row", position=list(sources).index(config)
            ) as progress,
        ):
            tables = source.tables(source.shards, rejected)
            if config == PRETRAIN:
                tables = _unique(tables, source.name)
            tables = _counted(seen.watch(tables), progress)
            schema = source.features.arrow_schema
            shard_size = convert_file_size_to_int(options.shard_size)
            shards = write_shards(tables, folder / config, schema, shard_size=shard_size, suffix=".parquet")
        if not shards.num_rows:
            raise InputError(f"{source.name}: no row can be used: {rejected}")
        return config, source, shards, seen, rejected

    written, counts = {}, {}
    # Side by side, since one Parquet file is encoded by one core.
    for config, source, shards, seen, rejected in parallel_map(write, sources.items(), threads=len(sources)):
        if rejected.counts:
            logger.warning("%s: %s; see rejected.jsonl", source.name, rejected)
            with (folder / "rejected.jsonl").open("ab") as whole, rejected.path.open("rb") as part:
                shutil.copyfileobj(part, whole)
            rejected.path.unlink()
        written[config] = (source.features, shards, seen)
        if rejected.changes:
            logger.warning("%s: %s", source.name, rejected.changes_text())
        counts[config] = {
            "rows": shards.num_rows,
            "rejected": dict(rejected.counts),
            "changed": dict(rejected.changes),
        }
    make_card(folder, written, license=options.license, **card_facts).save(folder / "README.md")
    return counts


def _unique(tables: Iterator, name: str) -> Iterator:
    seen: set[str] = set()
    for table in tables:
        for key in table.column("id").to_pylist():
            if key in seen:
                raise InputError(f"{name}: has the id {key!r} twice; expected each id once")
            seen.add(key)
        yield table


def _counted(tables: Iterator, progress) -> Iterator:
    for table in tables:
        yield table
        progress.update(len(table))


def _merge_provenance(sources: dict, inputs: dict) -> dict:
    """What the inputs' cards say of the vectors that are published.

    Raises:
        InputError: the captions' vectors and the conversations' are not of one encoder and dimension.
    """
    merged: dict[str, dict] = {}
    origins: dict[str, Origin] = {}
    for config, source in sources.items():
        said = read_provenance(inputs[config])
        for column, feature in source.features.items():
            if not column.endswith("_embeds") or (column == "image_embeds" and getattr(source, "lookup", None)):
                continue
            facts = {**said.get(column, {}), "embed_dim": feature.length}
            origin = Origin.of_column(said, column, feature.length)
            if differ := origin.difference(origins.setdefault(column, origin)):
                raise InputError(
                    f"{source.name}: its {column} are of {differ[0]}, and those of the captions of {differ[1]}; "
                    "publish vectors of one kind together"
                )
            merged[column] = {**facts, **merged.get(column, {})}
    return merged


def _gap(transfer, provenance: dict) -> dict:
    """What a transfer's config says of the distance between texts and images."""
    if transfer is None:
        return {}
    from unicorn_hf.transfer import ModalityTransfer

    config = ModalityTransfer.from_pretrained(transfer).config
    named = provenance.get("image_embeds", {}).get("transfer")
    if named not in (None, config["method"]):
        raise InputError(f"{transfer}: is by the method {config['method']!r}; the vectors were made by {named!r}")
    names = ("method", "text_count", "image_count", "centroid_distance_before", "centroid_distance_after")
    return {name: config.get(name) for name in names}


def _record(step: Path) -> dict:
    """What a step's folder says of how it was made: its card's metadata, and its `summary.json`."""
    record = {name: value for name, value in read_provenance(step).items() if not name.endswith("_embeds")}
    summary = step / "summary.json"
    if summary.is_file():
        record |= read_json(summary)
    return record


def _download(repo_id: str, revision: str | None, allow_pickle: bool) -> Path:
    from huggingface_hub import snapshot_download

    patterns = RELEASED_PATTERNS + (["*.pkl"] if allow_pickle else [])
    try:
        return Path(snapshot_download(repo_id, repo_type="dataset", revision=revision, allow_patterns=patterns))
    except Exception as error:  # no such repository, no network, no name of a repository, ...
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(
            f"{repo_id}: is neither a file or folder nor a dataset repository that can be read ({reason})"
        ) from error
