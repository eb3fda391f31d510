"""The options of `publish`, `push_to_hub` and `import`."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from unicorn_hf.errors import InputError
from unicorn_hf.options import LIMITS, MODEL, Options, option

HUB = "Hub"


@dataclass(kw_only=True)
class DatasetOptions(Options):
    """The options of every command that writes a dataset in the Hub's layout."""

    license: str = option("unknown", "The licence: one of the Hub's identifiers, such as apache-2.0.")
    overwrite: bool = option(False, "Replace the dataset in the output folder.")
    shard_size: str = option("500MB", "Size of a Parquet shard: bytes, or a size such as 500MB.", panel=LIMITS)

    def __post_init__(self):
        super().__post_init__()
        if not re.fullmatch(r"\s*0*[1-9]\d{0,14}\s*(?:[KMGT]i?B|B)?\s*", self.shard_size, re.IGNORECASE):
            raise InputError(f"--shard-size is {self.shard_size[:100]!r}; expected bytes, or a size such as 500MB")


@dataclass(kw_only=True)
class PublishConfig(DatasetOptions):
    """The options of `publish`."""

    title: str = option("Unicorn", "The title of the dataset card.")
    transfer: str | None = option(
        None, "The transfer that made the vectors; the card shows the modality gap before and after it."
    )
    steps: list[Path] = option(
        [], "The folder of an earlier step; its record goes on the card. May be repeated.", flags=("--step",)
    )
    skip_non_finite: bool = option(False, "Leave out rows whose vector is NaN, Inf or zero, and list them.")


@dataclass(kw_only=True)
class PublishAndPushConfig(PublishConfig):
    """The options of the command `publish`, which can also push the dataset."""

    push_to_hub: str | None = option(None, "Also push to this repository, as ORG/NAME.", panel=HUB)
    private: bool = option(False, "Make a new repository private.", panel=HUB)
    revision: str | None = option(None, "The branch to push to.", panel=HUB)
    create_pr: bool = option(False, "Open a pull request.", panel=HUB)


@dataclass(kw_only=True)
class ImportConfig(DatasetOptions):
    """The options of `import_released`."""

    pretrain: str | None = option(None, "Name of the captions' JSON file in the source.")
    instruction: str | None = option(None, "Name of the conversations' JSON file in the source.")
    embeddings: Path | None = option(
        None, "The vectors: .npy, .safetensors or .pkl; by default those beside the JSON files."
    )
    column: Literal["image_embeds", "text_embeds"] = option("image_embeds", "The column for the vectors.")
    allow_pickle: bool = option(False, "Read pickles, with a reader that accepts only plain data.")
    revision: str | None = option(None, "The revision of the Hub repository.")
    encoder: str | None = option(None, "Name of the encoder that made the vectors, for the card.", panel=MODEL)
    transfer: str | None = option(None, "Name of the transfer that was applied to them, for the card.", panel=MODEL)
