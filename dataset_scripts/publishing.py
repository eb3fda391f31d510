"""`publish` writes our steps' outputs in the Hub's layout; `import_released` does so for the papers' files.

Both write the rows of a source (`sources.py`) and a card. `UnicornBuilder` writes the same rows of the same sources to
the cache of `datasets`.
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

# The files of a Hub repository of the released data that `import_released` can read.
RELEASED_PATTERNS = ["*.json", "*.jsonl", "*.npy", "*.safetensors", "*.ids.txt"]


def publish(
    pretrain: Source,
    instruction: Source | None,
    output: str | Path,
    *,
    preference: Source | None = None,
    config: PublishConfig | None = None,
    provenance: dict | None = None,
    **options,
) -> Path:
    """Write the published configurations to the folder `output`, with a dataset card.

    Args:
        pretrain: a dataset or dataset folder with `id`, `caption`, `image_embeds`, and optionally `text_embeds`.
        instruction: a dataset or dataset folder with `id`, `caption`, `task`, `messages`. If it has no `image_embeds`,
            they are taken from `pretrain` by `str(id)`. None publishes only the captions.
        output: the folder to write.
        preference: a dataset or dataset folder with `id`, `caption`, `prompt`, `chosen`, `rejected`; its vectors as
            those of `instruction`.
        config: the options; `options` replace single fields of it.
        provenance: where the vectors come from, column -> `{"encoder", "embed_dim", "transfer"}`; by default as on the
            cards of the inputs.

    Returns:
        `output`; `load_dataset(output, name)` reads it, where `name` is `unicorn-1.2m`, `unicorn-471k-instruction` or
        `unicorn-preference`.

    Raises:
        InputError: an input is damaged, lacks a column, has an id twice or an unusable vector; a conversation or a
            pair has no vector; the inputs' encoders differ; `output` exists.
    """
    from unicorn_hf.dataset_scripts.sources import INSTRUCTION, PREFERENCE, PRETRAIN, TableSource

    config = PublishConfig.of(config, options)
    parts = {PRETRAIN: pretrain, INSTRUCTION: instruction, PREFERENCE: preference}
    parts = {part: data for part, data in parts.items() if data is not None}
    inputs = [*parts.values(), config.transfer, *config.steps]
    with _dataset_folder(output, config, inputs) as (folder, scratch):
        sources = {}
        for part, data in parts.items():
            vectors = {} if part == PRETRAIN else {"embeddings": pretrain, "scratch": scratch}
            sources[part] = TableSource(part, data, skip_non_finite=config.skip_non_finite, **vectors)
        if provenance is None:
            provenance = _merge_provenance(sources, parts)
        gap = _gap(config.transfer, provenance)
        records = {}
        for step in (*config.steps, *parts.values()):
            if isinstance(step, str | Path):
                records[Path(step).name] = _record(Path(step))
        card_facts = {"title": config.title, "provenance": provenance, "steps": records, "gap": gap}
        _write(sources, folder, config, card_facts)
    return Path(output)


def import_released(source, output: str | Path, *, config: ImportConfig | None = None, **options) -> Path:
    """Write the papers' released files in our layout.

    Args:
        source: the Hub id (`Yu2020/Unicorn`), a folder, or one JSON file; files are found by their names.
        output: the folder to write. Its `summary.json` lists the files and counts; its `rejected.jsonl` holds every
            rejected record with the reason.
        config: the options; `options` replace single fields of it. If `embeddings` is None, vectors beside the JSON
            are used. Without any, the rows have no vectors, and the next step is `embed`.

    Raises:
        InputError: no file has a known name, a file is damaged, or `output` exists.
    """
    from unicorn_hf.dataset_scripts.sources import INSTRUCTION, PRETRAIN, ReleasedSource, find_embeddings, open_lookup

    config = ImportConfig.of(config, options)
    embeddings, column = config.embeddings, config.column
    with _dataset_folder(output, config, [source, embeddings]) as (folder, scratch):
        path = Path(source)
        if not path.exists():
            if not is_hub_id(source):
                raise InputError(f"{source}: is neither a file or folder nor a dataset repository (org/name)")
            path = _download(source, config.revision, config.allow_pickle)
        files = _released_files(source, path, {PRETRAIN: config.pretrain, INSTRUCTION: config.instruction})
        if path.is_dir():
            embeddings = embeddings or find_embeddings(path)
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


def _released_files(source, path: Path, named: dict[str, str | None]) -> dict[str, Path | None]:
    """Configuration -> its JSON file, found by the name given in `named` or else by its released name.

    Raises:
        InputError: a named file is missing, or no file is found.
    """
    from unicorn_hf.dataset_scripts.sources import RELEASED_NAMES, expected_and_found, find_released, has_released_name

    if any(named.values()):
        root = path if path.is_dir() else path.parent
        files = {part: root / name if name else None for part, name in named.items()}
        if missing := [file for file in files.values() if file is not None and not file.is_file()]:
            raise InputError(f"{missing[0]}: no such file; expected one in {source}")
    elif path.is_dir():
        files = {part: find_released(part, path) for part in RELEASED_NAMES}
    else:
        files = {part: path if has_released_name(part, path) else None for part in RELEASED_NAMES}
    if not any(files.values()):
        raise InputError(f"{source}: has none of the released files: {expected_and_found([*RELEASED_NAMES], path)}")
    for part, file in files.items():
        if file is None:
            logger.warning("%s: has no rows for %s: %s", source, part, expected_and_found((part,), path))
    return files


@contextlib.contextmanager
def _dataset_folder(output, options: DatasetOptions, inputs: Iterable) -> Iterator[tuple[Path, Path]]:
    """The folder to write, which gets its final name when the block ends well, and a folder for temporary files."""
    with new_folder(output, overwrite=options.overwrite, inputs=inputs) as folder:
        scratch = folder / ".vectors"
        scratch.mkdir()
        yield folder, scratch
        shutil.rmtree(scratch)


def _write(sources: dict, folder: Path, options: DatasetOptions, card_facts: dict) -> dict[str, dict]:
    """Write the sources' rows and the card; returns the counts of each configuration (rows, rejected, changed)."""
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
            raise InputError(f"{source.name}: has no usable row: {rejected}")
        return config, source, shards, seen, rejected

    written, counts = {}, {}
    # In parallel, because one Parquet file is encoded on one core.
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
    """Where the published vectors come from, according to the cards of the inputs.

    Raises:
        InputError: the vectors of captions and conversations differ in encoder, transfer or dimension.
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
                    f"{source.name}: its {column} have {differ[0]}, but those of the captions have {differ[1]}; "
                    "only vectors of one kind can be published together"
                )
            merged[column] = {**facts, **merged.get(column, {})}
    return merged


def _gap(transfer, provenance: dict) -> dict:
    """The distance between texts and images before and after a transfer, from its config."""
    if transfer is None:
        return {}
    from unicorn_hf.transfer import ModalityTransfer

    config = ModalityTransfer.from_pretrained(transfer).config
    named = provenance.get("image_embeds", {}).get("transfer")
    if named not in (None, config["method"]):
        raise InputError(f"{transfer}: has the method {config['method']!r}, but the vectors were made by {named!r}")
    names = ("method", "text_count", "image_count", "centroid_distance_before", "centroid_distance_after")
    return {name: config.get(name) for name in names}


def _record(step: Path) -> dict:
    """A step's record of how its folder was made: the card's metadata and `summary.json`."""
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
    except Exception as error:  # no such repository, no network, not a valid repository name, ...
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(
            f"{repo_id}: is neither a file or folder nor a readable dataset repository ({reason})"
        ) from error
