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
    """An `Encoder`, whose own module imports torch."""

    embed_dim: int


@dataclass(kw_only=True)
class EmbedConfig(Options):
    """The options of `embed`."""

    column: str | None = option(None, "The column to embed; by default the one with a usual name.")
    modality: Literal["text", "image"] | None = option(
        None, "What the column holds; by default, what its name and type say."
    )
    remove_columns: list[str] = option(
        [], "A column to leave out of the output; may be repeated.", flags=("--remove-column",)
    )
    dataset_config: str | None = option(
        None, "The dataset's configuration; texts or images for one side of a ReVision file."
    )
    split: str = option("train", "The dataset's split.")
    image_root: Path | None = option(
        None, "The folder that the paths in a ReVision file start from; its own by default."
    )
    overflow: Overflow = option(
        "truncate", "For texts over the encoder's context: cut, refused, or the mean of their windows' vectors."
    )
    encoder: str | LoadedEncoder = option(
        None,
        "sandbox, open_clip/ARCHITECTURE/TAG, transformers/ORG/NAME, llm2clip/CLIP+LANGUAGE_MODEL, "
        "sentence-transformers/NAME, or a folder of such.",
        required=True,
        panel=MODEL,
    )
    device: str | None = option(None, "A torch device; a GPU by default, where there is one.", panel=MODEL)
    dtype: DtypeName = option("auto", "Of the weights; auto is bfloat16 on a GPU and float32 elsewhere.", panel=MODEL)
    compile: bool = option(False, "Run the towers through torch.compile.", panel=MODEL)
    trust_remote_code: bool = option(False, "Run the encoder's own code.", panel=MODEL)
    batch_size: Literal["auto"] | int = option(
        "auto", "Rows in a batch; auto fills a budget of tokens.", panel=LIMITS, at_least=1, at_most=10**6
    )
    shard_rows: int | None = option(
        None, "Rows in a shard, which is done whole or again.", panel=LIMITS, at_least=1, at_most=10**9
    )
    num_workers: int | None = option(
        None,
        "Processes beside each task that tokenise or decode; as many as pay off by default.",
        panel=LIMITS,
        at_least=0,
        at_most=1024,
    )
    executor: ExecutorName = option("local", "Who runs the tasks, through datatrove.", panel=CLUSTER)
    tasks: int = option(
        1,
        "How many tasks share the shards, each on a GPU where there are any.",
        panel=CLUSTER,
        at_least=1,
        at_most=10**5,
    )
    executor_options: dict = option(
        {},
        "NAME=VALUE for datatrove's executor; may be repeated.",
        panel=CLUSTER,
        flags=("--executor-option",),
        repeat=True,
    )
