"""Datasets in the Hub's layout, which `load_dataset` reads without code of ours, and pushes that can be repeated.

`publish` writes our steps' outputs, `import_released` the papers' files; `push_to_hub` uploads any folder this package
writes: a dataset, a model, a transfer.
"""

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from unicorn_hf.data.data_files import is_hub_id
from unicorn_hf.data.provenance import Origin, read_provenance
from unicorn_hf.data.staging import new_folder, write_json
from unicorn_hf.errors import InputError

logger = logging.getLogger(__name__)

PUSH_ATTEMPTS = 5
# What a Hub repository of the released data may hold that `import_released` can read.
RELEASED_PATTERNS = ["*.json", "*.jsonl", "*.npy", "*.safetensors", "*.ids.txt"]


def publish(
    pretrain,
    instruction,
    output,
    *,
    title: str = "Unicorn",
    license: str = "unknown",
    provenance: dict | None = None,
    transfer=None,
    steps: Sequence = (),
    skip_non_finite: bool = False,
    shard_size: int | str = "500MB",
    overwrite: bool = False,
) -> Path:
    """Write the two published configurations to the folder `output`, with a dataset card.

    Args:
        pretrain: a dataset or dataset folder with `id`, `caption`, `image_embeds`, and `text_embeds` where it has them.
        instruction: a dataset or dataset folder with `id`, `caption`, `task`, `messages`; `image_embeds` are taken from
            `pretrain` by `str(id)` where it has none. None: only the captions are published.
        output: the folder to write.
        title, license: of the card; a licence is one of the Hub's identifiers.
        provenance: where the vectors come from, column -> `{"encoder", "embed_dim", "transfer"}`; what the inputs'
            cards say, by default.
        transfer: the folder or Hub id of the transfer that made the vectors; its gap before and after goes on the
            card.
        steps: folders of earlier steps (captions, text embeddings) whose records go on the card.
        skip_non_finite: leave out rows whose vector is NaN, Inf or zero, and list them in `rejected.jsonl`.
        shard_size: bytes, or a text such as "500MB".
        overwrite: replace `output` where an earlier run has written it and nothing in it was added or changed since;
            otherwise it must not exist, or be empty. It is never an input.

    Returns:
        `output`; `load_dataset(output, "unicorn-1.2m")` and `load_dataset(output, "unicorn-471k-instruction")` read it.

    Raises:
        InputError: an input is damaged, lacks a column, has an id twice or a vector that is not finite; an instruction
            has no vector; the inputs' encoders differ; `output` exists.
    """
    from unicorn_hf.dataset_scripts.sources import INSTRUCTION, PRETRAIN, TableSource

    with _dataset_folder(output, overwrite, [pretrain, instruction, transfer, *steps]) as (folder, scratch):
        sources = {PRETRAIN: TableSource(PRETRAIN, pretrain, skip_non_finite=skip_non_finite)}
        if instruction is not None:
            sources[INSTRUCTION] = TableSource(
                INSTRUCTION, instruction, pretrain, skip_non_finite=skip_non_finite, scratch=scratch
            )
        if provenance is None:
            provenance = _merge_provenance(sources, {PRETRAIN: pretrain, INSTRUCTION: instruction})
        gap = _gap(transfer, provenance)
        records = {}
        for step in (*steps, pretrain, instruction):
            if isinstance(step, str | Path):
                records[Path(step).name] = _record(Path(step))
        card_facts = {"title": title, "license": license, "provenance": provenance, "steps": records, "gap": gap}
        _write(sources, folder, shard_size=_num_bytes(shard_size), card_facts=card_facts)
    return Path(output)


def import_released(
    source,
    output,
    *,
    pretrain: str | None = None,
    instruction: str | None = None,
    embeddings=None,
    column: str = "image_embeds",
    encoder: str | None = None,
    transfer: str | None = None,
    allow_pickle: bool = False,
    revision: str | None = None,
    license: str = "unknown",
    shard_size: int | str = "500MB",
    overwrite: bool = False,
) -> Path:
    """Write the papers' released files in our layout.

    Args:
        source: the Hub id (`Yu2020/Unicorn`), a folder, or one JSON file; files are found by their names.
        output: the folder to write. What was found, and the counts, are in its `summary.json`; every record that
            could not be used is in its `rejected.jsonl`, with the reason.
        pretrain, instruction: names of the JSON files in `source`, where they are others than the released ones.
        embeddings: the vectors, where they are not beside the JSON: `.npy`, `.safetensors`, `.pkl`, a folder of such.
            Without any, the rows have no vectors, and `embed` is the next step.
        column: what the vectors are: `image_embeds` or `text_embeds`.
        encoder, transfer: names of what made the vectors, for the card.
        allow_pickle: read pickles, with a reader that admits plain data only.
        revision: of the Hub repository.

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

    with _dataset_folder(output, overwrite, [source, embeddings]) as (folder, scratch):
        path = Path(source)
        if not path.exists():
            if not is_hub_id(source):
                raise InputError(
                    f"{source}: is neither a file or folder nor a dataset repository, whose name is org/name"
                )
            path = _download(source, revision, allow_pickle)
        named = {PRETRAIN: pretrain, INSTRUCTION: instruction}
        if any(named.values()):
            root = path if path.is_dir() else path.parent
            files = {config: root / name if name else None for config, name in named.items()}
            missing = [file for file in files.values() if file is not None and not file.is_file()]
            if missing:
                raise InputError(f"{missing[0]}: no such file; expected one in {source}")
        elif path.is_dir():
            files = {config: find_released(config, path) for config in CONFIGS}
        else:
            files = {config: path if has_released_name(config, path) else None for config in CONFIGS}
        if path.is_dir():
            embeddings = embeddings or find_embeddings(path)
        if not any(files.values()):
            raise InputError(f"{source}: is not of the released files: {expected_and_found(CONFIGS, path)}")
        for config, file in files.items():
            if file is None:
                logger.warning("%s: has no rows for %s: %s", source, config, expected_and_found((config,), path))
        lookup, provenance = None, {}
        if embeddings is not None:
            lookup = open_lookup(embeddings, column, skip_non_finite=True, allow_pickle=allow_pickle, scratch=scratch)
            facts = {"encoder": encoder, "embed_dim": lookup.embed_dim, "transfer": transfer}
            provenance[column] = {name: value for name, value in facts.items() if value is not None}
        sources = {config: ReleasedSource(config, file, lookup, column) for config, file in files.items() if file}
        title = f"Unicorn, imported from {Path(source).name if Path(source).exists() else source}"
        card_facts = {"title": title, "license": license, "provenance": provenance, "steps": {}, "gap": {}}
        counts = _write(sources, folder, shard_size=_num_bytes(shard_size), card_facts=card_facts)
        summary = {
            config: {"file": opened.name, "embeddings": lookup and lookup.name, **counts[config]}
            for config, opened in sources.items()
        }
        write_json(summary, folder / "summary.json")
    return Path(output)


def push_to_hub(
    folder,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
    commit_message: str | None = None,
) -> str:
    """Upload a dataset, model or transfer folder to the Hub; the repository is created where it does not exist.

    The upload can be repeated: what has arrived is not sent again, and shards of an earlier version are removed. A
    server's errors and dropped connections are waited out for a while.

    Args:
        folder: what `publish`, `save_pretrained` of a model and its processor, or of a transfer, have written.
        private: whether a new repository is private; the namespace's default where it is None.
        revision: a branch, created where it does not exist, or `refs/pr/N`.
        create_pr: open a pull request instead of writing to the branch.
        token: the saved one, or `HF_TOKEN`, where it is None.

    Returns:
        the address of the commit, or of the pull request.

    Raises:
        InputError: `folder` is none of the three, or lacks a file that others would need; the card's metadata are not
            valid; the Hub refuses.
    """
    from huggingface_hub import HfApi

    from unicorn_hf.dataset_scripts.sources import CONFIGS

    folder = Path(folder)
    kind, repo_type = _check_folder(folder)
    api = HfApi(token=token, library_name="unicorn-hf")
    delete = None
    if repo_type == "dataset":
        # Shards of another number would be read together with ours.
        delete = sorted({f"{path.parent.name}/*" for path in folder.glob("*/*.parquet")} | {f"{c}/*" for c in CONFIGS})

    def push():
        repo = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo, branch=revision, repo_type=repo_type, exist_ok=True)
        return api.upload_folder(
            repo_id=repo,
            repo_type=repo_type,
            folder_path=folder,
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message or f"Upload {kind}",
            ignore_patterns=["rejected.jsonl", "summary.json", ".*"],
            delete_patterns=delete,
        )

    # A pull request whose answer was lost would be opened twice, so that is left to the user.
    info = _with_patience(push, repo_id, attempts=1 if create_pr else PUSH_ATTEMPTS)
    return info.pr_url if create_pr else info.commit_url


@contextlib.contextmanager
def _dataset_folder(output, overwrite: bool, inputs: Iterable) -> Iterator[tuple[Path, Path]]:
    """The folder to write, which takes its name when the block has ended well, and one for temporary files."""
    with new_folder(output, overwrite=overwrite, inputs=inputs) as folder:
        scratch = folder / ".vectors"
        scratch.mkdir()
        yield folder, scratch
        shutil.rmtree(scratch)


def _write(sources: dict, folder: Path, *, shard_size: int, card_facts: dict) -> dict[str, dict]:
    """Write the sources' rows and the card; returns the number of rows, and of rejected records, by configuration."""
    from unicorn_hf.data.shards import write_shards
    from unicorn_hf.dataset_scripts.dataset_card import Observed, make_card
    from unicorn_hf.dataset_scripts.released_json import Rejected
    from unicorn_hf.dataset_scripts.sources import PRETRAIN
    from unicorn_hf.progress import progress_bar

    written, counts = {}, {}
    for config, source in sources.items():
        seen = Observed()
        with (
            Rejected(folder / "rejected.jsonl", config) as rejected,
            progress_bar(total=source.num_rows, desc=config, unit="row") as progress,
        ):
            tables = source.tables(source.shards, rejected)
            if config == PRETRAIN:
                tables = _unique(tables, source.name)
            tables = _counted(seen.watch(tables), progress)
            schema = source.features.arrow_schema
            shards = write_shards(tables, folder / config, schema, shard_size=shard_size, suffix=".parquet")
        if not shards.num_rows:
            raise InputError(f"{source.name}: no row can be used: {rejected}")
        if rejected.counts:
            logger.warning("%s: %s; see rejected.jsonl", source.name, rejected)
        written[config] = (source.features, shards, seen)
        if rejected.changes:
            logger.warning("%s: %s", source.name, rejected.changes_text())
        counts[config] = {
            "rows": shards.num_rows,
            "rejected": dict(rejected.counts),
            "changed": dict(rejected.changes),
        }
    make_card(folder, written, **card_facts).save(folder / "README.md")
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
        try:
            record |= json.loads(summary.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{summary}: is no JSON object ({error})") from error
    return record


def _num_bytes(size: int | str) -> int:
    from datasets.utils.py_utils import convert_file_size_to_int

    try:
        num_bytes = convert_file_size_to_int(size)
    except (TypeError, ValueError) as error:
        raise InputError(f"shard size {size!r}: expected bytes, or a text such as '500MB'") from error
    if num_bytes < 1:
        raise InputError(f"shard size {size!r}: expected more than nothing")
    return num_bytes


def _download(repo_id: str, revision: str | None, allow_pickle: bool) -> Path:
    from huggingface_hub import snapshot_download

    patterns = RELEASED_PATTERNS + (["*.pkl"] if allow_pickle else [])
    try:
        return Path(snapshot_download(repo_id, repo_type="dataset", revision=revision, allow_patterns=patterns))
    except Exception as error:  # no such repository, no network, no name of a repository, ...
        raise InputError(
            f"{repo_id}: is neither a file or folder nor a dataset repository that can be read ({_reason(error)})"
        ) from error


def _check_folder(folder: Path) -> tuple[str, str]:
    """What kind of thing a folder holds, and its type of repository.

    Raises:
        InputError: it is none of ours, or is not complete.
    """
    from huggingface_hub import DatasetCard, ModelCard

    if (folder / "transfer_config.json").is_file():
        kind, card_class, needed = "transfer", ModelCard, ["transfer.safetensors"]
    elif (folder / "config.json").is_file():
        kind, card_class, needed = "model", ModelCard, ["processor_config.json", "tokenizer_config.json"]
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        needed += sorted({f"{reference.split('.')[0].split('--')[-1]}.py" for reference in _auto_classes(config)})
    elif any(folder.glob("*/*.parquet")):
        kind, card_class, needed = "dataset", DatasetCard, []
    else:
        raise InputError(
            f"{folder}: holds no dataset, model or transfer; expected a folder that this package has written"
        )
    for name in ["README.md", *needed]:
        if not (folder / name).is_file():
            raise InputError(
                f"{folder}: is a {kind} without {name}; save it again, the processor included, then push it"
            )
    try:
        card_class.load(folder / "README.md")
    except Exception as error:  # the YAML parser and the metadata's classes raise what they like
        raise InputError(f"{folder / 'README.md'}: its metadata cannot be read ({_reason(error)})") from error
    return kind, "dataset" if kind == "dataset" else "model"


def _auto_classes(config: dict) -> list[str]:
    references = []
    for value in config.get("auto_map", {}).values():
        references += [item for item in (value if isinstance(value, list) else [value]) if item]
    return references


def _with_patience(push, repo_id: str, *, attempts: int):
    """`push()`, again after a server's error or a lost connection; what the Hub refuses is an `InputError`."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    for attempt in range(1, attempts + 1):
        try:
            return push()
        except Exception as raised:  # beside these two, what the HTTP library raises where a connection is lost
            # What befalls the upload of a file comes wrapped in a RuntimeError.
            error = raised.__cause__ if isinstance(raised, RuntimeError) and raised.__cause__ else raised
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else 500
        if isinstance(error, ValueError | LocalTokenNotFoundError) or (status < 500 and status != 429):
            raise InputError(f"{repo_id}: the push was refused ({_reason(error)})") from error
        if attempt == attempts:
            raise InputError(
                f"{repo_id}: the push did not go through ({_reason(error)}); run it again, what has arrived is kept"
            ) from error
        wait = min(2**attempt, 30)
        logger.warning("%s: %s; trying again in %d s", repo_id, _reason(error), wait)
        time.sleep(wait)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
