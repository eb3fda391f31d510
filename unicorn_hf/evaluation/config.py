"""The options of `evaluate`, `generate`, `app` and `serve`."""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from unicorn_hf.embedding.config import DtypeName
from unicorn_hf.options import LIMITS, MODEL, WHAT, Options, option

Task = Literal["vqa", "multiple-choice", "yes-no", "caption"]


@runtime_checkable
class FittedTransfer(Protocol):
    """Any `ModalityTransfer`; a protocol, because importing its module would slow down the help."""

    def condition_image(self, vectors): ...


@dataclass(kw_only=True)
class TrainedModelOptions(Options):
    """Options for loading a trained model and encoding images for it."""

    encoder: str | None = option(None, "The encoder for images, if the model does not name it.", panel=MODEL)
    transfer: str | FittedTransfer | None = option(
        None,
        "The transfer of the training data; needed only for a mean shift in the centred space, which changes the "
        "vectors of real images too.",
        panel=MODEL,
    )
    device: str | None = option(None, "A torch device; by default a GPU if there is one.", panel=MODEL)
    dtype: DtypeName = option("auto", "dtype of the weights; auto keeps the saved one.", panel=MODEL)
    trust_remote_code: bool = option(False, "Run code from the model's folder.", panel=MODEL)


@dataclass(kw_only=True)
class EvaluateConfig(TrainedModelOptions):
    """The options of `evaluate`."""

    task: Task = option("vqa", "The kind of question, and how answers are scored.")
    dataset_config: str | None = option(None, "The dataset's configuration.")
    split: str = option("train", "The dataset's split.")
    blind: bool = option(False, "Ask without images: the prompt holds only the question.")
    baseline: bool = option(
        True,
        "Also measure the mean-image baseline: ask every question with the mean vector of all images, to see which "
        "answers need no image.",
    )
    circular: bool = option(True, "multiple-choice: ask with the options in every rotation.")
    suffix: str = option("", "Text to add after every question.")
    batch_size: int = option(64, "Questions per batch.", panel=LIMITS, at_least=1, at_most=10**6)
    max_new_tokens: int | None = option(
        None,
        "The longest answer, in tokens; 32 by default, 64 for captions.",
        panel=LIMITS,
        at_least=1,
        at_most=10**6,
    )


@dataclass(kw_only=True)
class GenerateConfig(TrainedModelOptions):
    """The options of `unicorn-hf generate`."""

    temperature: float = option(0.0, "Sampling temperature; 0 gives the most likely answer.", at_least=0, at_most=100)
    allow_private_addresses: bool = option(False, "Also read images from URLs of this machine and of private networks.")
    top_p: float = option(
        1.0, "Sample only from the most likely tokens with this total probability.", above=0, at_most=1
    )
    max_new_tokens: int = option(256, "The longest answer, in tokens.", panel=LIMITS, at_least=1, at_most=10**6)


@dataclass(kw_only=True)
class AppConfig(TrainedModelOptions):
    """The options of `unicorn-hf app`."""

    max_new_tokens: int = option(256, "The longest answer, in tokens.", panel=LIMITS, at_least=1, at_most=10**6)
    host: str = option("127.0.0.1", "The address to serve at; 0.0.0.0 for all addresses.", panel=WHAT)
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
