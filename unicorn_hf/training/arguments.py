"""What a stage reads beside TRL's `SFTConfig` (stage 3: `DPOConfig`) and `ModelConfig`.

Each field is a YAML key and a flag of the recipes.
"""

import warnings
from dataclasses import dataclass, field

# TRL 1.16 sets it by the name that transformers 5.24 warns of; a user can do nothing about it (2026-11).
warnings.filterwarnings("ignore", "`gradient_checkpointing` is deprecated", FutureWarning)


@dataclass
class DataArguments:
    """The data of a stage."""

    dataset: str | None = field(default=None, metadata={"help": "Dataset folder, data file or Hub id."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration, e.g. unicorn-1.2m."})
    dataset_split: str = field(default="train", metadata={"help": "Split to train on."})
    mixture: list[str] | None = field(
        default=None,
        metadata={
            "help": "Several datasets in its place: DATASET[:CONFIG][=WEIGHT], a list or by commas. With weights, each "
            "sample is drawn from a dataset with that probability until every row was seen; without, all rows once."
        },
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read the data while training (needs --max_steps), and keep no copy."}
    )


@dataclass
class SupervisedArguments(DataArguments):
    """The data of stages 1 and 2, and how they become batches."""

    overlong: str = field(
        default="cut",
        metadata={"help": "Samples above max_length: cut (their last turns) or drop.", "choices": ["cut", "drop"]},
    )
    version: str | None = field(
        default=None,
        metadata={
            "help": "The released code's prompt, by the name it has there, in place of the tokenizer's chat template.",
            "choices": ["bunny", "phi3", "llama", "minicpm"],
        },
    )
    batching: str = field(
        default="auto",
        metadata={
            "help": "padded, padding-free (one flat row), or auto: the latter under FlashAttention and flex attention.",
            "choices": ["auto", "padded", "padding-free"],
        },
    )


@dataclass
class FinetuneArguments(SupervisedArguments):
    """Stage 2 may train the projector at a rate of its own."""

    projector_learning_rate: float | None = field(
        default=None, metadata={"help": "Of the projector; learning_rate by default."}
    )


@dataclass
class PretrainArguments(SupervisedArguments):
    """Stage 1 also makes the projector, so it has the projector's sizes."""

    num_image_tokens: int = field(default=1, metadata={"help": "Tokens that one image vector becomes."})
    projector_type: str = field(default="mlp2x_gelu", metadata={"help": "linear, mlp2x_gelu, mlp3x_gelu, ..."})
    projector_expand: str = field(
        default="split",
        metadata={
            "help": "split: as many different tokens; copy: one token, repeated, which is the released layout.",
            "choices": ["split", "copy"],
        },
    )
    normalize_image_embeds: bool = field(
        default=True, metadata={"help": "Scale every vector to unit length first; the released code does not."}
    )
    learn: str = field(
        default="caption",
        metadata={
            "help": "The caption and an end token; or, as in the released code, messages' answer and a line feed.",
            "choices": ["caption", "answer"],
        },
    )
    standardize_image_embeds: bool = field(
        default=False,
        metadata={"help": "Condition the vectors to mean 0 and mean variance 1 over the training set."},
    )


@dataclass
class PreferArguments(DataArguments):
    """Stage 3 reads pairs of answers, of which both are whole and padded."""
