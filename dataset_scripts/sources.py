"""The sources of a configuration's rows: our steps' shards, a `datasets.Dataset`, or the released JSON.

A source has features, files and shards (pieces that can be read in parallel). It yields tables of rows in the published
schema. If the rows have no vectors of their own, it looks them up by id.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value
from datasets.table import table_cast
from unicorn_hf.dataset_scripts.embedding_lookup import EmbeddingLookup, reason_of
from unicorn_hf.dataset_scripts.released_json import Rejected, read_rows

from unicorn_hf.data.data_files import is_hub_id, read_card
from unicorn_hf.data.dataset_folder import feature_text
from unicorn_hf.data.shards import as_lists
from unicorn_hf.data.sources import read_dataset
from unicorn_hf.data.tables import DatasetTables, open_tables, table_files
from unicorn_hf.data.usable_vectors import as_float16, what_is_wrong
from unicorn_hf.data.vector_sets import TableVectors
from unicorn_hf.errors import InputError

PRETRAIN, INSTRUCTION, PREFERENCE = "unicorn-1.2m", "unicorn-471k-instruction", "unicorn-preference"
CONFIGS = (PRETRAIN, INSTRUCTION, PREFERENCE)
# A released file (`Pretrain.json`, `Instruction.json`) has one of these words in its name; pairs were never released.
RELEASED_NAMES = {
    PRETRAIN: ("pretrain", "1.2m", "filtered_output"),
    INSTRUCTION: ("instruct", "471k", "finetune", "sft"),
}
VECTOR_COLUMNS = ("text_embeds", "image_embeds")

_TURNS = List({"role": Value("string"), "content": Value("string")})
_TEXT_FEATURES = {
    PRETRAIN: {"id": Value("string"), "caption": Value("string")},
    INSTRUCTION: {
        "id": Value("string"),
        "caption": Value("string"),
        "task": Value("string"),
        "messages": _TURNS,
    },
    PREFERENCE: {
        "id": Value("string"),
        "caption": Value("string"),
        **dict.fromkeys(("prompt", "chosen", "rejected"), _TURNS),
    },
}


def make_features(config: str, embed_dims: dict[str, int]) -> Features:
    """The features of a configuration with vectors of these dimensions."""
    vectors = {name: List(Value("float16"), length=embed_dims[name]) for name in VECTOR_COLUMNS if name in embed_dims}
    return Features({**_TEXT_FEATURES[config], **vectors})


def open_source(
    config: str, data, *, embeddings=None, column: str = "image_embeds", allow_pickle: bool = False, scratch=None
) -> "TableSource | ReleasedSource":
    """The rows of `config` in a folder of shards, or in released JSON (a file, or its folder).

    Args:
        embeddings: where the vectors are, if `data` has none (see `open_lookup`). If `data` is a folder of released
            JSON, vectors in that folder are found automatically.
        column: the column for the vectors of released JSON: `image_embeds` or `text_embeds`.

    Raises:
        InputError: `data` has no rows of `config`; the message lists the expected and the existing files.
    """
    path = Path(data)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.is_dir() and shards_of(config, path):
        return TableSource(config, data, embeddings, allow_pickle=allow_pickle, scratch=scratch)
    file = None
    if config in RELEASED_NAMES:
        file = path if path.is_file() else find_released(config, path)
    if file is None:
        raise InputError(f"{path}: has no rows for {config}: {expected_and_found((config,), path)}")
    if embeddings is None and path.is_dir():
        embeddings = find_embeddings(path)
    lookup = None
    if embeddings is not None:
        lookup = open_lookup(embeddings, column, skip_non_finite=True, allow_pickle=allow_pickle, scratch=scratch)
    return ReleasedSource(config, file, lookup, column)


def find_released(config: str, path: Path) -> Path | None:
    """The file in the folder `path` with the name of a released file of `config`; None if there is none.

    Raises:
        InputError: there are several.
    """
    found = [file for file in _json_files(path) if has_released_name(config, file)]
    if len(found) > 1:
        raise InputError(f"{path}: has several files for {config} ({_listed(found, path)}); name the one to read")
    return found[0] if found else None


def has_released_name(config: str, file: Path) -> bool:
    return file.suffix in (".json", ".jsonl") and any(part in file.name.lower() for part in RELEASED_NAMES[config])


def expected_and_found(configs: Sequence[str], path: Path) -> str:
    parts = " or ".join(repr(part) for config in configs for part in RELEASED_NAMES.get(config, ()))
    found = _listed(_json_files(path), path) if path.is_dir() else path.name
    json_file = f"a JSON file with {parts} in its name, or " if parts else ""
    return f"expected {json_file}shards of Arrow or Parquet; found {found or 'neither'}"


def find_embeddings(path: Path) -> Path | None:
    """The file or folder of released vectors in `path`; None if there is none."""
    files = [file for file in path.rglob("*") if file.suffix in (".npy", ".safetensors", ".pkl", ".pickle")]
    files = [file for file in files if not _hidden(file, path)]
    found = sorted({file.parent if file.suffix == ".pkl" else file for file in files})
    if len(found) > 1:
        raise InputError(f"{path}: has vectors in several places ({_listed(found, path)}); name one with --embeddings")
    return found[0] if found else None


def shards_of(config: str, path: Path) -> list[Path]:
    """The shards of `config` in a published folder, or of the folder's only dataset."""
    name = config_name(config, path)
    if name is None and not read_card(path).get("configs") and not any(_under(path, ".arrow", ".parquet")):
        return []  # released JSON, or nothing
    return table_files(path, name)


def config_name(config: str, path: Path) -> str | None:
    """`config` if the folder has a configuration of that name (in its card or as a subfolder), else None."""
    listed = [each.get("config_name") for each in read_card(path).get("configs") or []]
    return config if config in listed or (not listed and (path / config).is_dir()) else None


class TableSource:
    """Rows that already have the published columns, with or without `image_embeds`."""

    def __init__(
        self,
        config: str,
        data,
        embeddings=None,
        *,
        skip_non_finite: bool = False,
        allow_pickle: bool = False,
        scratch=None,
    ):
        self.config, self.skip_non_finite = config, skip_non_finite
        self.name = str(data) if isinstance(data, str | Path) else "the dataset"
        shards = shards_of(config, Path(data)) if isinstance(data, str | Path) and Path(data).is_dir() else None
        self.reader = open_tables(shards, self.name) if shards else DatasetTables(_load(data, config), self.name)
        self.files, self.shards, self.num_rows = self.reader.files, self.reader.pieces, self.reader.num_rows
        schema = self.reader.schema
        for column in _TEXT_FEATURES[config]:
            if column not in schema.names:
                raise InputError(f"{self.name}: has no column {column!r}; its columns are {', '.join(schema.names)}")
        wanted = VECTOR_COLUMNS if config == PRETRAIN else ("image_embeds",)
        self.vectors = {name: TableVectors(self.reader, name, {}) for name in wanted if name in schema.names}
        embed_dims = {name: vectors.embed_dim for name, vectors in self.vectors.items()}
        self.lookup: EmbeddingLookup | None = None
        if "image_embeds" not in embed_dims:
            if embeddings is None:
                raise InputError(
                    f"{self.name}: has no column 'image_embeds' (its columns are {', '.join(schema.names)}); "
                    "add it with `transfer apply`, or name embeddings that have it"
                )
            self.lookup = open_lookup(
                embeddings,
                "image_embeds",
                skip_non_finite=skip_non_finite,
                allow_pickle=allow_pickle,
                scratch=scratch,
            )
            embed_dims["image_embeds"] = self.lookup.embed_dim
        self.features = make_features(config, embed_dims)

    def tables(self, shards: Sequence, rejected: Rejected) -> Iterator[pa.Table]:
        """Tables in the schema of `self.features`. A bad row is an error, because our own steps wrote these rows.

        With `skip_non_finite`, a row whose vector is NaN, Inf or zero goes to `rejected` instead.
        """
        stored = [name for name in self.features if name in self.reader.schema.names]
        for piece in shards:
            for table in self.reader.read(piece, stored):
                yield self._published(table, self.reader.where(piece), rejected)

    def _published(self, table: pa.Table, where: str, rejected: Rejected) -> pa.Table:
        text = [name for name in table.column_names if name not in VECTOR_COLUMNS]
        columns = {name: cast_text(table.select([name]), self.features[name], where) for name in text}
        ids = columns["id"].to_pylist()
        for name in text:
            if name != "task" and columns[name].null_count:
                row = columns[name].is_null().to_pylist().index(True)
                raise InputError(f"{where}: the row with id {ids[row]!r} has no {name}; fill it in, or leave it out")
        left_out: dict[int, str] = {}
        for name in VECTOR_COLUMNS:
            if name in table.column_names:
                vectors = vector_block(table, name, self.features[name].length, where, ids)
            elif self.lookup is not None and name in self.features:
                vectors = self._look_up(self.lookup, ids, where, left_out)
            else:
                continue
            half, unusable = as_float16(vectors)
            for row in unusable:
                what = what_is_wrong(vectors[row])
                if not self.skip_non_finite:
                    held = what if np.isfinite(half[row]).all() else "NaN or Inf in float16"
                    raise InputError(
                        f"{where}: the {name} of id {ids[row]!r} hold {held}; expected finite vectors that are not "
                        "zero; correct it, or leave such rows out with skip_non_finite (--skip-non-finite)"
                    )
                left_out.setdefault(int(row), reason_of(what))
            columns[name] = as_lists(half)
        result = pa.table([columns[name] for name in self.features], schema=self.features.arrow_schema)
        if left_out:
            for row, reason in sorted(left_out.items()):
                rejected.add(reason, {name: columns[name][row].as_py() for name in text})
            result = result.filter(pa.array([row not in left_out for row in range(len(table))]))
        return result

    def _look_up(self, lookup: EmbeddingLookup, ids: list[str], where: str, left_out: dict[int, str]) -> np.ndarray:
        rows = lookup.find(ids)
        for row in np.flatnonzero(rows < 0):
            reason = lookup.unusable.get(ids[row])
            if reason is None or not self.skip_non_finite:
                raise InputError(
                    f"{where}: id {ids[row]!r} is not in {lookup.name}, so it has no image_embeds; embed it too"
                )
            left_out[int(row)] = reason
        return lookup.rows(np.maximum(rows, 0))


class ReleasedSource:
    """Rows of a released JSON list, with vectors looked up by id if a lookup is given; bad records are rejected."""

    num_rows = None

    def __init__(self, config: str, path: Path, lookup: EmbeddingLookup | None, column: str):
        self.config, self.lookup, self.column, self.name = config, lookup, column, str(path)
        self.files, self.shards = [path], [path]
        self.features = make_features(config, {} if lookup is None else {column: lookup.embed_dim})

    def tables(self, shards: Sequence, rejected: Rejected) -> Iterator[pa.Table]:
        """Tables in the schema of `self.features`."""
        schema = self.features.arrow_schema
        for path in shards:
            for rows in read_rows(path, with_messages=self.config == INSTRUCTION, rejected=rejected):
                vectors = None
                if self.lookup is not None and rows:
                    rows, vectors = self._join(self.lookup, rows, rejected)
                columns = {name: [row[name] for row in rows] for name in _TEXT_FEATURES[self.config]}
                if vectors is not None:
                    columns[self.column] = as_lists(vectors)
                if rows:
                    yield pa.table(columns, schema=schema)

    def _join(self, lookup: EmbeddingLookup, rows: list[dict], rejected: Rejected) -> tuple[list[dict], np.ndarray]:
        ids = [str(row["record"]["id"]) for row in rows]  # not `row["id"]`, which may have got a suffix
        places = lookup.find(ids)
        for row, id_, place in zip(rows, ids, places, strict=True):
            if place < 0:
                rejected.add(lookup.unusable.get(id_, "no embedding"), row["record"])
        found = np.flatnonzero(places >= 0)
        return [rows[place] for place in found], lookup.rows(places[found]).astype(np.float16, copy=False)


def open_lookup(
    embeddings, column: str, *, skip_non_finite: bool = False, allow_pickle: bool = False, scratch=None
) -> EmbeddingLookup:
    """Look up the vectors of `column` by id, in a dataset, a folder (published or a step's) or a file."""
    if column not in VECTOR_COLUMNS:
        raise InputError(f"column {column!r}: expected one of {', '.join(VECTOR_COLUMNS)}")
    if isinstance(embeddings, Dataset):
        return EmbeddingLookup.from_dataset(embeddings, column, skip_non_finite=skip_non_finite)
    files = shards_of(PRETRAIN, Path(embeddings)) if Path(embeddings).is_dir() else []
    if files:
        embeddings = TableVectors(open_tables(files, str(embeddings)), column, {})
    return EmbeddingLookup.open(
        embeddings, column, skip_non_finite=skip_non_finite, allow_pickle=allow_pickle, scratch=scratch
    )


def vector_block(table: pa.Table, column: str, embed_dim: int, where, ids: list[str]) -> np.ndarray:
    """A column of lists as an array [n, embed_dim].

    Raises:
        InputError: a list has another length; the message names the id of its row.
    """
    lists = table.column(column).combine_chunks()
    lengths = lists.value_lengths()
    wrong = np.flatnonzero(lengths.fill_null(-1).to_numpy(zero_copy_only=False) != embed_dim)
    if len(wrong):
        row = int(wrong[0])
        raise InputError(
            f"{where}: the {column} of id {ids[row]!r} have {lengths[row].as_py() or 'no'} dimensions; "
            f"expected {embed_dim}"
        )
    return lists.flatten().to_numpy(zero_copy_only=False).reshape(-1, embed_dim)


def cast_text(column: pa.Table, feature, where) -> pa.ChunkedArray:
    """A table of one column -> that column, cast to the type of its feature."""
    (name,) = column.column_names
    try:
        return table_cast(column, Features({name: feature}).arrow_schema).column(name)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise InputError(
            f"{where}: the column {name!r} holds {column.schema.field(name).type}; expected {feature_text(feature)}"
        ) from error


def _load(data, config: str) -> Dataset:
    if isinstance(data, Dataset):
        return data
    path = Path(data)
    if path.exists():
        return read_dataset(data, config_name(config, path) if path.is_dir() else None)
    try:
        return read_dataset(data, config)
    except InputError:
        if not is_hub_id(data):
            raise
        return read_dataset(data)


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _json_files(root: Path) -> list[Path]:
    return sorted(file for file in _under(root, ".json", ".jsonl") if file.is_file())


def _under(root: Path, *suffixes: str) -> Iterator[Path]:
    return (file for file in root.rglob("*") if file.suffix in suffixes and not _hidden(file, root))


def _listed(files: list[Path], root: Path) -> str:
    return ", ".join(str(file.relative_to(root)) for file in files[:8])
