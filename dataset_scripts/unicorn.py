"""The `datasets` builder of Unicorn's configurations, for our steps' outputs and the released files.

A published folder or repository does not need it: `load_dataset` reads those directly.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow as pa
from datasets.builder import Key
from datasets.exceptions import DatasetGenerationError
from datasets.fingerprint import Hasher
from unicorn_hf.dataset_scripts.released_json import Rejected
from unicorn_hf.dataset_scripts.sources import (
    CONFIGS,
    INSTRUCTION,
    PREFERENCE,
    PRETRAIN,
    ReleasedSource,
    TableSource,
    open_source,
)

from unicorn_hf.data.data_files import state_of
from unicorn_hf.errors import InputError

DESCRIPTIONS = {
    PRETRAIN: "Captions with synthetic image embeddings, for the projector",
    INSTRUCTION: "Conversations about captions with synthetic image embeddings, for instruction tuning",
    PREFERENCE: "Right and wrong answers about captions with synthetic image embeddings, for preference training",
}


def load_unicorn(
    name: str = PRETRAIN,
    data_dir: str | Path | None = None,
    *,
    embeddings: str | Path | None = None,
    column: str = "image_embeds",
    allow_pickle: bool = False,
    num_proc: int | None = None,
    cache_dir: str | Path | None = None,
) -> datasets.Dataset:
    """Load a configuration from a step's output, a published folder, or the released files.

    Args:
        name: `unicorn-1.2m` (id, caption, text_embeds?, image_embeds), `unicorn-471k-instruction` (id, caption, task,
            messages, image_embeds) or `unicorn-preference` (id, caption, prompt, chosen, rejected, image_embeds).
        data_dir: the folder, or a released JSON file.
        embeddings: where the vectors are, if the rows have none: `.npy`, `.safetensors`, `.pkl`, or a dataset folder.
        column: the column for the vectors of released files: `image_embeds` or `text_embeds`.
        allow_pickle: read pickles, with a reader that accepts only plain data.
        num_proc: the number of processes; at most one per row group of Parquet.

    Returns:
        the split `train`; vectors are `List(float16, length=D)`. Rejected records are in `rejected.jsonl` beside the
        dataset's cache files.

    Raises:
        InputError: the name is unknown, or files are missing, damaged, or have another schema.
    """
    if name not in CONFIGS:
        raise InputError(f"configuration {name!r}: expected one of {', '.join(CONFIGS)}")
    builder = UnicornBuilder(
        cache_dir=None if cache_dir is None else str(cache_dir),
        config_name=name,
        data_dir=None if data_dir is None else str(data_dir),
        embeddings=None if embeddings is None else str(embeddings),
        column=column,
        allow_pickle=allow_pickle,
    )
    try:
        builder.download_and_prepare(num_proc=num_proc)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        raise
    return builder.as_dataset(split="train")


@dataclass
class UnicornBuilderConfig(datasets.BuilderConfig):
    """Adds where the vectors are, and a fingerprint of all files, so that a changed file is read again."""

    embeddings: str | None = None
    column: str = "image_embeds"
    allow_pickle: bool = False
    fingerprint: str | None = None


class UnicornBuilder(datasets.ArrowBasedBuilder):
    """`UnicornBuilder(config_name=…, data_dir=…).download_and_prepare()`; see `load_unicorn`."""

    BUILDER_CONFIG_CLASS = UnicornBuilderConfig
    BUILDER_CONFIGS = [  # noqa: RUF012 (`datasets` requires this name and form)
        UnicornBuilderConfig(name=name, version=datasets.Version("1.0.0"), description=DESCRIPTIONS[name])
        for name in CONFIGS
    ]
    DEFAULT_CONFIG_NAME = PRETRAIN
    # Rows per Arrow chunk: few, because rows with vectors are wide.
    DEFAULT_WRITER_BATCH_SIZE = 1000

    def __init__(self, *args, data_dir: str | Path | None = None, embeddings: str | Path | None = None, **kwargs):
        paths = [Path(path) for path in (data_dir, embeddings) if path is not None]
        fingerprint = Hasher.hash([_state(path) for path in paths]) if paths else None
        super().__init__(*args, data_dir=data_dir, embeddings=embeddings, fingerprint=fingerprint, **kwargs)
        self.scratch: Path | None = None  # for temporary vectors and rejected records while rows are written

    def _info(self) -> datasets.DatasetInfo:
        # The features are set in `_split_generators`, because the length of the vectors is only known from the files.
        return datasets.DatasetInfo(
            description=DESCRIPTIONS[self.config.name], homepage="https://arxiv.org/abs/2503.22655"
        )

    def download_and_prepare(self, *args, **kwargs):
        """As in `datasets`; afterwards, rejected records are in `rejected.jsonl` in `cache_dir`."""
        root = Path(self.cache_dir)
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{root.name}.", dir=root.parent) as scratch:
            self.scratch = Path(scratch)
            try:
                super().download_and_prepare(*args, **kwargs)
            finally:
                self.scratch = None
            if (rejected := Path(scratch, "rejected.jsonl")).exists():
                rejected.replace(root / "rejected.jsonl")

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        config = self.config
        if config.data_dir is None:
            raise InputError(f"{config.name}: needs data_dir, the folder of a step's output or of the released files")
        if not Path(config.data_dir).exists():
            raise InputError(f"{config.data_dir}: no such file or folder")
        source = open_source(
            config.name,
            config.data_dir,
            embeddings=config.embeddings,
            column=config.column,
            allow_pickle=config.allow_pickle,
            scratch=self.scratch,
        )
        self.info.features = source.features
        return [datasets.SplitGenerator(datasets.Split.TRAIN, gen_kwargs={"shards": source.shards, "source": source})]

    def _generate_tables(self, shards: list, source: TableSource | ReleasedSource) -> Iterator[tuple[Key, pa.Table]]:
        # When streaming there is no folder to keep the rejected records in.
        with tempfile.TemporaryDirectory() as nowhere:
            kept = Path(self.scratch or nowhere, "rejected.jsonl")
            with Rejected(kept, self.config.name) as rejected:
                for index, table in enumerate(source.tables(list(shards), rejected)):
                    yield Key(0, index), table
        if rejected.changes:
            datasets.logging.get_logger(__name__).warning(f"{source.name}: {rejected.changes_text()}")
        if rejected.counts:
            where = f"; see {Path(self.cache_dir) / 'rejected.jsonl'}" if self.scratch else ""
            datasets.logging.get_logger(__name__).warning(f"{source.name}: {rejected}{where}")


def _state(path: Path) -> list[tuple[str, int, int, int]]:
    """The state of all files under `path`; it differs after one of them has changed."""
    files = sorted(file.resolve() for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path.resolve()]
    return state_of([file for file in files if file.exists()])
