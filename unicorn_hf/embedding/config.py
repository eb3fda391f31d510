"""The options of the embed step."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from unicorn_hf.executors import ExecutorName
from unicorn_hf.options import CLUSTER, LIMITS, MODEL, Options, option

Overflow = Literal["truncate", "error", "mean"]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]


@runtime_checkable
class LoadedEncoder(Protocol):
    """Any `Encoder`; a protocol, because the module of `Encoder` imports torch."""

    embed_dim: int


@dataclass(kw_only=True)
class EmbedConfig(Options):
    """The options of `embed`."""

    column: str | None = option(None, "The column to embed; by default one with a usual name (caption, text, image).")
    modality: Literal["text", "image"] | None = option(
        None, "What the column holds; guessed from its name and type by default."
    )
    remove_columns: list[str] = option(
        [], "A column to leave out of the output; may be repeated.", flags=("--remove-column",)
    )
    dataset_config: str | None = option(
        None, "The dataset's configuration; for a ReVision file: texts or images, to embed only one side."
    )
    split: str = option("train", "The dataset's split.")
    image_root: Path | None = option(
        None, "The folder that image paths in a ReVision file are relative to; the file's own folder by default."
    )
    overflow: Overflow = option(
        "truncate",
        "What to do with texts longer than the encoder's context: truncate them, stop with an error, or split them "
        "into windows and take the mean of the windows' vectors.",
    )
    encoder: str | LoadedEncoder = option(
        None,
        "sandbox, open_clip/ARCHITECTURE/TAG, transformers/ORG/NAME, llm2clip/CLIP+LANGUAGE_MODEL, "
        "sentence-transformers/NAME, or a local folder of such a model.",
        required=True,
        panel=MODEL,
    )
    device: str | None = option(None, "A torch device; by default a GPU if there is one.", panel=MODEL)
    dtype: DtypeName = option(
        "auto", "dtype of the weights; auto is bfloat16 on a GPU and float32 elsewhere.", panel=MODEL
    )
    compile: bool = option(False, "Run the towers through torch.compile.", panel=MODEL)
    trust_remote_code: bool = option(False, "Run code from the encoder's repository.", panel=MODEL)
    batch_size: Literal["auto"] | int = option(
        "auto", "Rows per batch; auto fills a budget of tokens.", panel=LIMITS, at_least=1, at_most=10**6
    )
    shard_rows: int | None = option(
        None, "Rows per shard; a killed run repeats only unfinished shards.", panel=LIMITS, at_least=1, at_most=10**9
    )
    num_workers: int | None = option(
        None,
        "Worker processes per task that tokenise or decode; chosen automatically by default.",
        panel=LIMITS,
        at_least=0,
        at_most=1024,
    )
    executor: ExecutorName = option("local", "The datatrove executor that runs the tasks.", panel=CLUSTER)
    tasks: int = option(
        1,
        "Number of tasks that share the shards, each on its own GPU if there are GPUs.",
        panel=CLUSTER,
        at_least=1,
        at_most=10**5,
    )
    executor_options: dict = option(
        {},
        "NAME=VALUE, an argument of datatrove's executor; may be repeated.",
        panel=CLUSTER,
        flags=("--executor-option",),
        repeat=True,
    )
