"""One run of the embed step, which can be killed and resumed.

During a run, `.<output>.embedding/` beside the output holds `settings.json` (the options and the source), `dataset/`
(the shards written so far) and `shards/` (the counts, failures and fingerprint of each shard). A shard is written to a
temporary name and renamed, so a resumed run skips every shard that exists and is what was written. When all shards
exist, `dataset/` becomes the output.
"""

import contextlib
import dataclasses
import errno
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets.table import embed_table_storage

from unicorn_hf.data.dataset_folder import feature_text, write_card
from unicorn_hf.data.provenance import read_provenance
from unicorn_hf.data.shards import as_lists, fingerprint, write_arrow
from unicorn_hf.data.sources import check_columns
from unicorn_hf.data.staging import (
    check_new_folder,
    finish_folder,
    lock,
    read_json,
    rename_durably,
    write_json,
    write_text,
)
from unicorn_hf.embedding.config import EmbedConfig
from unicorn_hf.embedding.embedded_shards import EmbeddedShard, default_num_workers, embed_shards
from unicorn_hf.embedding.encoder import Encoder
from unicorn_hf.embedding.encoders import canonical_name, find_library, load_encoder
from unicorn_hf.embedding.shards import open_shards
from unicorn_hf.embedding.text_image_file import SIDES, is_text_image_file
from unicorn_hf.errors import DISK_FULL, InputError
from unicorn_hf.executors import check_executor, run_ranks

logger = logging.getLogger(__name__)

TEXT_COLUMNS = ("caption", "text", "txt")
COUNTS = ("rows", "failed", "tokens", "padded_tokens", "overflowing")  # what is counted of a shard
# The last is of sounds; those between it and the first are names of WebDataset.
IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "audio")


@dataclasses.dataclass(kw_only=True)
class EmbeddingJob(EmbedConfig):
    """The arguments of `embed` (documented there) and the work to do with them."""

    data: object
    output: str | None

    def __post_init__(self):
        super().__post_init__()
        # The paths are made absolute, because a rank may run in another folder.
        if isinstance(self.data, str | Path):
            path = Path(self.data).expanduser()
            self.data = str(path.absolute() if path.exists() else self.data)
        if self.image_root is not None:
            self.image_root = str(Path(self.image_root).expanduser().absolute())
        if self.output is not None:
            self.output = str(Path(self.output).absolute())
        if isinstance(self.encoder, Encoder):
            if self.tasks > 1 or self.executor != "local":
                raise InputError("several tasks load the encoder themselves; give its name")
        else:
            self.encoder = canonical_name(self.encoder)
            find_library(self.encoder)

    def __getstate__(self) -> dict:
        # Each rank opens the source itself and checks that it has not changed.
        return {key: value for key, value in vars(self).items() if key != "source"}

    def sides(self) -> dict[str, "EmbeddingJob"]:
        """The jobs for the texts and the images of a ReVision data file, one output folder each; empty for other data.

        Raises:
            InputError: the output holds anything but these folders.
        """
        if not isinstance(self.data, str) or self.dataset_config is not None or not is_text_image_file(self.data):
            return {}
        if self.column is not None:
            raise InputError(f"--column is {self.column!r}, but a ReVision file has a fixed one per side: leave it out")
        if self.output is not None and Path(self.output).exists():
            ours = {name for side in SIDES for name in (side, f".{side}.embedding")}
            if not Path(self.output).is_dir() or not ours.issuperset(os.listdir(self.output)):
                raise InputError(f"{self.output}: exists and holds other files; name another folder")
        return {
            side: dataclasses.replace(
                self,
                dataset_config=side,
                output=None if self.output is None else str(Path(self.output) / side),
            )
            for side in SIDES
        }

    def run(self) -> dict | None:
        """Write the output folder, or its missing shards.

        Returns:
            the content of `summary.json` plus the time of this run; None if the jobs were only submitted.
        """
        self.open_source()
        with contextlib.ExitStack() as stack:
            if self.executor != "slurm":  # on Slurm the last job takes the lock
                with writing(self.output):
                    stack.enter_context(lock(self.output))
            return self.run_in_folder()

    def run_in_folder(self) -> dict | None:
        started = time.perf_counter()
        if (summary := self.read_finished()) is not None:
            return {**summary, "seconds": 0.0}
        in_process = self.executor == "local" and self.tasks == 1
        if not in_process:
            check_executor(self.executor, self.tasks, self.extra)
        encoder = self.load_encoder(0) if in_process else None  # before `start`, so that a wrong name leaves no files
        before = self.start()
        if in_process:
            self.run_rank(0, 1, encoder)
        elif not self.run_tasks():
            return None
        summary = self.finish()
        seconds = time.perf_counter() - started
        rates = {
            f"{key}_per_second": round((summary[key] - before[key]) / seconds, 1)
            for key in ("rows", "tokens")
            if summary[key]
        }
        return {**summary, "seconds": round(seconds, 2), **rates}

    def embed_in_memory(self) -> tuple[datasets.Dataset, list[dict]]:
        """The embedded rows with their vectors, and the failed rows, each with its place and the reason."""
        self.open_source()
        shards = sorted(self.embed_shards(range(self.num_shards), self.load_encoder(0)), key=lambda shard: shard.index)
        tables, failed = zip(*map(self.complete, shards), strict=True)
        failures = [failure for each in failed for failure in each]
        self.check_not_all(failures, self.source.num_rows)
        return datasets.Dataset(pa.concat_tables(tables)), failures

    def check_not_all(self, failures: list[dict], rows: int) -> None:
        """Raise `InputError` if every row failed."""
        if failures and len(failures) == rows:
            first = json.dumps(failures[0], ensure_ascii=False)[:300]
            raise InputError(
                f"{self.data if isinstance(self.data, str) else 'the dataset'}: none of its {rows:,} rows could be "
                f"embedded; the first: {first}; correct the data, or name another column (--column)"
            )

    def open_source(self) -> None:
        """Open the data, choose the column, and cut the rows into shards.

        Raises:
            InputError: the data cannot be read, or the column does not exist.
        """
        self.source = open_shards(self.data, name=self.dataset_config, split=self.split, image_root=self.image_root)
        self.column, self.kind = self.choose_column()
        self.embeds_column = f"{self.kind}_embeds"
        self.num_shards = self.source.cut(self.kind, self.shard_rows)
        check_columns(self.source, *self.remove_columns, source=self.data)

    def choose_column(self) -> tuple[str, str]:
        columns = list(self.source.features)
        if self.column is not None:
            check_columns(self.source, self.column, source=self.data)
            return self.column, self.modality or self.guess_modality(self.column)
        if self.source.kind == "image":
            return "image", "image"
        usual = [(column, "text") for column in TEXT_COLUMNS if column in columns]
        usual += [(column, "image") for column in IMAGE_COLUMNS if column in columns]
        usual = [(column, kind) for column, kind in usual if self.modality in (None, kind)]
        if {kind for _, kind in usual} == {"text", "image"}:
            raise InputError(
                f"{self.data}: has texts ({usual[0][0]}) and images ({usual[-1][0]}); say which to embed (--column)"
            )
        if not usual:
            raise InputError(
                f"{self.data}: has no column caption, text or image; name the one to embed (--column), "
                f"of {', '.join(columns)}"
            )
        return usual[0]

    def guess_modality(self, column: str) -> str:
        """`text` for a column of strings, unless it has a usual name of images; `image` for any other type."""
        is_text = getattr(self.source.features[column], "dtype", None) in ("string", "large_string")
        return "text" if is_text and column not in IMAGE_COLUMNS else "image"

    def read_finished(self) -> dict | None:
        """The summary of a finished output with the same settings; None if there is no output yet.

        Raises:
            InputError: the output exists and is anything else.
        """
        output = Path(self.output)
        if (output / "summary.json").is_file():
            summary = read_json(output / "summary.json")
            if summary.get("settings") == self.settings():
                shutil.rmtree(self.work, ignore_errors=True)
                return summary
        check_new_folder(output)
        return None

    def settings(self) -> dict:
        """All options that influence the bytes of the shards. A run with other settings cannot be resumed."""
        return {
            "encoder": self.encoder_name,
            "dtype": self.dtype,
            "source": self.data if isinstance(self.data, str) else "",
            "source_fingerprint": self.source.fingerprint,
            "dataset_config": self.dataset_config,
            "split": self.split,
            "column": self.column,
            "batch_size": self.batch_size,
            "overflow": self.overflow,
            "remove_columns": self.remove_columns,
            "num_shards": self.num_shards,
            **({"image_root": self.image_root} if self.image_root else {}),
        }

    @property
    def extra(self) -> str:
        return "ray" if self.executor == "ray" else "cluster"

    @property
    def encoder_name(self) -> str:
        return self.encoder if isinstance(self.encoder, str) else self.encoder.name

    @property
    def work(self) -> Path:
        """The folder of an unfinished run."""
        return Path(self.output).with_name(f".{Path(self.output).name}.embedding")

    def start(self) -> dict:
        """Create the folder of the run, or resume that of an earlier run; returns the counts of its finished shards.

        Raises:
            InputError: the earlier run had other settings or another source.
        """
        with writing(self.output):
            self.work.mkdir(parents=True, exist_ok=True)
            if (self.work / "settings.json").is_file():
                self.check_settings()
            else:
                write_json(self.settings(), self.work / "settings.json")
            for folder in ("dataset/data", "shards"):
                (self.work / folder).mkdir(parents=True, exist_ok=True)
            # Earlier versions wrote Parquet shards.
            for path in (self.work / "dataset" / "data").glob("train-*.parquet"):
                content = write_arrow(pq.read_table(path), partial := path.with_suffix(".partial"))
                write_text(content, self.fingerprint_file(int(path.name.split("-")[1])))
                partial.rename(path.with_suffix(".arrow"))
                path.unlink()
            self.forget_damaged_shards()
        return self.count(self.done_shards())

    def forget_damaged_shards(self) -> None:
        """Remove the shards of an earlier run that are no longer what was written, so that they are made again."""
        for shard in sorted(self.done_shards()):
            try:
                record = read_json(self.counts_file(shard))
                counts, failures = record["counts"], record["failures"]
                is_whole = (
                    all(type(counts[name]) is int for name in COUNTS)
                    and all(isinstance(failure, dict) for failure in failures)
                    and self.fingerprint_file(shard).read_text() == fingerprint([self.shard_file(shard)])
                )
            except (InputError, OSError, KeyError, TypeError, ValueError):
                is_whole = False
            if not is_whole:
                logger.warning("%s: is damaged and is made again", self.shard_file(shard))
                self.shard_file(shard).unlink()
                for logs in self.work.glob("logs-of-*-tasks"):  # whose markers say that its rank is done
                    shutil.rmtree(logs)

    def check_settings(self) -> None:
        before = read_json(self.work / "settings.json")
        for key, now in self.settings().items():
            if before.get(key) != now:
                what = (
                    "the source has changed"
                    if key == "source_fingerprint"
                    else f"{key} was {before.get(key)!r}, is now {now!r}"
                )
                raise InputError(
                    f"{self.output}: cannot resume the unfinished run: {what}; remove {self.work} to start again, or "
                    "use the same settings and source as before"
                )

    def run_tasks(self) -> bool:
        """Run the ranks through datatrove; returns False if they were only submitted."""
        from unicorn_hf.embedding.datatrove_steps import EmbedShards, FinishEmbedding

        return run_ranks(
            EmbedShards(self),
            self.work / f"logs-of-{self.tasks}-tasks",  # markers of finished ranks are valid for one number of tasks
            extra=self.extra,
            executor=self.executor,
            tasks=self.tasks,
            workers=self.workers if self.executor == "local" else -1,
            options=self.complete_executor_options(),
            then=FinishEmbedding(self) if self.executor == "slurm" else None,
        )

    def complete_executor_options(self) -> dict:
        """The options of datatrove's executor, with one GPU per rank by default."""
        options = dict(self.executor_options)
        if self.executor == "ray":
            options.setdefault("gpus_per_task", int(torch.cuda.is_available()))
        if self.executor == "slurm":
            defaults = {"gpus_per_task": 1, "job_name": "embed", "qos": None}
            if sys.prefix != sys.base_prefix:
                defaults["venv_path"] = f"{sys.prefix}/bin/activate"
            options = {**defaults, **options}
        return options

    def run_rank(self, rank: int, world_size: int, encoder: Encoder | None = None) -> None:
        """Embed and write the missing shards of a rank.

        Raises:
            InputError: the source has changed, the disk is full, or a text overflows and `overflow` is `error`.
        """
        if not hasattr(self, "source"):
            self.open_source()
            self.check_settings()
        done = self.done_shards()
        missing = [shard for shard in range(rank, self.num_shards, world_size) if shard not in done]
        if not missing:
            return
        if world_size > 1 and self.executor == "local" and not torch.cuda.is_available():
            torch.set_num_threads(max(1, torch.get_num_threads() // self.workers))
        encoder = encoder or self.load_encoder(rank)
        # One shard is written while the next ones are embedded.
        with ThreadPoolExecutor(1) as writer:
            pending = None
            for shard in self.embed_shards(missing, encoder, rank, world_size):
                if pending:
                    pending.result()
                pending = writer.submit(self.write_shard, shard)
            pending.result()

    @property
    def workers(self) -> int:
        """The number of local ranks that run at the same time: one per GPU, or one per core."""
        return min(self.tasks, torch.cuda.device_count() or len(os.sched_getaffinity(0)))

    def load_encoder(self, rank: int) -> Encoder:
        if isinstance(self.encoder, Encoder):
            return self.encoder
        device = self.device or (f"cuda:{rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu")
        options = {"dtype": self.dtype, "compile": self.compile, "trust_remote_code": self.trust_remote_code}
        return load_encoder(self.encoder, device=device, **options)

    def embed_shards(self, shards, encoder: Encoder, rank: int = 0, world_size: int = 1) -> Iterator[EmbeddedShard]:
        num_workers = self.num_workers
        if num_workers is None:
            ranks = self.workers if self.executor == "local" else 1
            num_workers = default_num_workers(self.kind, encoder.device, len(shards), self.source.num_rows, ranks)
        return embed_shards(
            self.source,
            shards,
            encoder,
            kind=self.kind,
            column=self.column,
            batch_size=self.batch_size,
            overflow=self.overflow,
            num_workers=num_workers,
            progress="embed" if world_size == 1 else f"embed {rank + 1}/{world_size}",
            position=rank if self.executor == "local" else 0,
        )

    def complete(self, shard: EmbeddedShard) -> tuple[pa.Table, list[dict]]:
        """A shard's embedded rows with their vectors, and its failed rows with place, id or path, and the reason."""
        dataset = self.source.read(shard.index)
        failures = []
        for row in sorted(shard.reasons):
            values = dataset[row]
            image = values[self.column]
            named = {key: values[key] for key in ("id", "__key__") if key in values}
            named |= {"path": image["path"]} if isinstance(image, dict) and image.get("path") else {}
            failures.append({**self.source.place(shard.index, row), **named, "reason": shard.reasons[row]})
        if failures:
            dataset = dataset.select(shard.rows)
        kept = [name for name in dataset.column_names if name not in (self.embeds_column, *self.remove_columns)]
        return add_vectors(dataset, kept, self.embeds_column, shard.vectors), failures

    def shard_file(self, shard: int) -> Path:
        return self.work / "dataset" / "data" / f"train-{shard:05d}-of-{self.num_shards:05d}.arrow"

    def counts_file(self, shard: int) -> Path:
        return self.work / "shards" / f"{shard:05d}.json"

    def fingerprint_file(self, shard: int) -> Path:
        return self.counts_file(shard).with_suffix(".xxh3")

    def done_shards(self) -> set[int]:
        return {shard for shard in range(self.num_shards) if self.shard_file(shard).is_file()}

    def write_shard(self, shard: EmbeddedShard) -> None:
        """Write a shard behind its counts and its fingerprint: if the shard's file exists, these exist too."""
        with writing(self.output):
            table, failures = self.complete(shard)
            write_json({"counts": shard.counts, "failures": failures}, self.counts_file(shard.index))
            path = self.shard_file(shard.index)
            partial = path.with_name(f".{path.name}.partial")
            table = embed_table_storage(table) if len(table) else table  # it does not take an empty one
            write_text(write_arrow(table, partial), self.fingerprint_file(shard.index))
            rename_durably(partial, path)

    def finish(self) -> dict:
        """Turn the shards into the output folder and return its summary.

        Raises:
            InputError: a shard is missing, or no row could be embedded.
        """
        done = self.done_shards()
        if len(done) < self.num_shards:
            raise InputError(
                f"{self.output}: {self.num_shards - len(done)} of {self.num_shards} shards are missing; run the same "
                "command again to continue"
            )
        records = [read_json(self.counts_file(shard)) for shard in range(self.num_shards)]
        dataset = self.work / "dataset"
        with pa.memory_map(str(self.shard_file(0))) as file, pa.ipc.open_stream(file) as shard:
            features = datasets.Features.from_arrow_schema(shard.schema)
        embed_dim = features[self.embeds_column].length
        counts = self.count(done)
        failures = [failure for record in records for failure in record["failures"]]
        try:
            self.check_not_all(failures, counts["rows"])
        except InputError:
            if self.executor != "slurm":  # nothing of it is worth keeping
                shutil.rmtree(self.work)
            raise
        summary = {
            **counts,
            "embedded": counts["rows"] - counts["failed"],
            "padding_share": round(1 - counts["tokens"] / counts["padded_tokens"], 4) if counts["tokens"] else None,
            "embed_dim": embed_dim,
            "settings": read_json(self.work / "settings.json"),
        }
        with writing(self.output):
            if failures:
                lines = "".join(json.dumps(failure, ensure_ascii=False) + "\n" for failure in failures)
                (dataset / "failed.jsonl").write_text(lines, encoding="utf-8")
            write_json(summary, dataset / "summary.json")
            write_card(
                dataset,
                title=f"Vectors of {self.encoder_name}",
                num_rows=summary["embedded"],
                columns={name: feature_text(feature) for name, feature in features.items()},
                provenance={
                    **read_provenance(self.data),
                    self.embeds_column: {"encoder": self.encoder_name, "embed_dim": embed_dim},
                },
                fingerprint=fingerprint(map(self.shard_file, range(self.num_shards))),
            )
            finish_folder(dataset, Path(self.output))
        if self.executor == "slurm":  # keep the folder: it holds the log of the job that runs this
            (self.work / "settings.json").unlink()
            shutil.rmtree(self.work / "shards")
        else:
            shutil.rmtree(self.work)
        return summary

    def count(self, shards) -> dict[str, int]:
        """The sum of the counts of some finished shards."""
        total = dict.fromkeys(COUNTS, 0)
        for shard in shards:
            for key, value in read_json(self.counts_file(shard))["counts"].items():
                total[key] += value
        return total


def add_vectors(dataset: datasets.Dataset, kept: list[str], name: str, vectors: np.ndarray) -> pa.Table:
    """The columns `kept` of `dataset` as a table, and the rows of `vectors` (float16) as the column `name`."""
    features = datasets.Features({column: dataset.features[column] for column in kept})
    for column, feature in features.items():
        if isinstance(feature, datasets.Image | datasets.Audio):
            features[column] = dataclasses.replace(feature, decode=True)  # `False` was only for reading
    features[name] = datasets.List(datasets.Value("float16"), length=vectors.shape[1])
    rows = dataset.select_columns(kept).with_format("arrow")[:] if kept else {}
    columns = {column: rows[column] for column in kept} | {name: as_lists(vectors)}
    return pa.table(columns).cast(features.arrow_schema)


@contextlib.contextmanager
def writing(output):
    """Turn errors of the disk into one sentence."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in DISK_FULL:
            raise InputError(
                f"{output}: the disk is full ({reason}); make room and run the same command again: finished shards are "
                "kept"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT):
            raise InputError(f"{output}: cannot be written ({reason}); name another folder") from error
        raise
