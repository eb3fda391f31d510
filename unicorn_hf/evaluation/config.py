"""The options of `evaluate`, `generate` and `app`: the model, and how pictures become its vectors."""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from unicorn_hf.embedding.config import DtypeName
from unicorn_hf.options import LIMITS, MODEL, WHAT, Options, option

Task = Literal["vqa", "multiple-choice", "yes-no", "caption"]


@runtime_checkable
class FittedTransfer(Protocol):
    """A `ModalityTransfer`, whose own module imports more than a help text should wait for."""

    def condition_image(self, vectors): ...


@dataclass(kw_only=True)
class TrainedModelOptions(Options):
    """How a trained model is loaded, and pictures for it."""

    encoder: str | None = option(None, "The pictures' encoder, where the model does not say it.", panel=MODEL)
    transfer: str | FittedTransfer | None = option(
        None, "The training data's transfer, where pictures' vectors must go through it too.", panel=MODEL
    )
    device: str | None = option(None, "A torch device; a GPU by default, where there is one.", panel=MODEL)
    dtype: DtypeName = option("auto", "Of the weights; auto is as they were saved.", panel=MODEL)
    trust_remote_code: bool = option(False, "Run the code that the model's folder brings.", panel=MODEL)


@dataclass(kw_only=True)
class EvaluateConfig(TrainedModelOptions):
    """The options of `evaluate`."""

    task: Task = option("vqa", "What is asked, and how it is scored.")
    dataset_config: str | None = option(None, "The dataset's configuration.")
    split: str = option("train", "The dataset's split.")
    blind: bool = option(False, "Leave the picture out and ask the question alone.")
    baseline: bool = option(True, "Ask again before the pictures' mean vector: what is right there needs no picture.")
    circular: bool = option(True, "multiple-choice: the options in every rotation.")
    suffix: str = option("", "Put behind every question.")
    batch_size: int = option(64, "Questions in a batch.", panel=LIMITS, at_least=1, at_most=10**6)
    max_new_tokens: int | None = option(
        None, "The longest answer, in tokens; 32, and 64 for captions.", panel=LIMITS, at_least=1, at_most=10**6
    )


@dataclass(kw_only=True)
class GenerateConfig(TrainedModelOptions):
    """The options of `unicorn-hf generate`."""

    temperature: float = option(0.0, "Of the sampling; 0 for the likeliest answer.", at_least=0, at_most=100)
    allow_private_addresses: bool = option(False, "Read images from URLs of this machine and of private networks too.")
    top_p: float = option(1.0, "Sample from the likeliest tokens of this share.", above=0, at_most=1)
    max_new_tokens: int = option(256, "The longest answer, in tokens.", panel=LIMITS, at_least=1, at_most=10**6)


@dataclass(kw_only=True)
class AppConfig(TrainedModelOptions):
    """The options of `unicorn-hf app`."""

    max_new_tokens: int = option(256, "The longest answer, in tokens.", panel=LIMITS, at_least=1, at_most=10**6)
    host: str = option("127.0.0.1", "The address to serve at; 0.0.0.0 for every one.", panel=WHAT)
    port: int | None = option(
        None, "The port; the first free one from 7860 by default.", panel=WHAT, at_least=1, at_most=65535
    )


@dataclass(kw_only=True)
class ServeConfig(TrainedModelOptions):
    """The options of `unicorn-hf serve`."""

    max_new_tokens: int = option(
        256, "The longest answer, in tokens, where a request does not say it.", panel=LIMITS, at_least=1, at_most=10**6
    )
    host: str = option("127.0.0.1", "The address to serve at; 0.0.0.0 for every one.", panel=WHAT)
    port: int = option(8000, "The port.", panel=WHAT, at_least=1, at_most=65535)
    allow_private_addresses: bool = option(False, "Read images from URLs of this machine and of private networks too.")
