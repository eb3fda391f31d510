"""What a stage reads beside TRL's `SFTConfig` (stage 3: `DPOConfig`) and `ModelConfig`.

Each field is a YAML key and a flag of the recipes.
"""

import warnings
from dataclasses import dataclass, field

# TRL 1.16 sets this option by a name that transformers 5.24 has deprecated; users can do nothing about it (2026-11).
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
            "help": "Several datasets instead of one: DATASET[:CONFIG][=WEIGHT], as a list or separated by commas. "
            "With weights, each sample is drawn from a dataset with that probability until every row was seen; without "
            "weights, every row is used once."
        },
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read the data during training, without a copy on disk (needs --max_steps)."}
    )


@dataclass
class SupervisedArguments(DataArguments):
    """The data of stages 1 and 2, and how they become batches."""

    overlong: str = field(
        default="cut",
        metadata={
            "help": "Samples longer than max_length: cut (truncate; conversations lose their last turns) or drop.",
            "choices": ["cut", "drop"],
        },
    )
    version: str | None = field(
        default=None,
        metadata={
            "help": "Use a prompt of the released code, by its name there, instead of the tokenizer's chat template.",
            "choices": ["bunny", "phi3", "llama", "minicpm"],
        },
    )
    batching: str = field(
        default="auto",
        metadata={
            "help": "padded, padding-free (one flat row), or auto: padding-free with FlashAttention or flex attention.",
            "choices": ["auto", "padded", "padding-free"],
        },
    )


@dataclass
class FinetuneArguments(SupervisedArguments):
    """The options of stage 2, which can train the projector at its own learning rate."""

    projector_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the projector; learning_rate by default."}
    )


@dataclass
class PretrainArguments(SupervisedArguments):
    """The options of stage 1, which creates the projector and so needs its sizes."""

    num_image_tokens: int = field(default=1, metadata={"help": "Tokens per image vector."})
    projector_type: str = field(default="mlp2x_gelu", metadata={"help": "linear, mlp2x_gelu, mlp3x_gelu, ..."})
    projector_expand: str = field(
        default="split",
        metadata={
            "help": "split: num_image_tokens different tokens; copy: one token, repeated (the released layout).",
            "choices": ["split", "copy"],
        },
    )
    normalize_image_embeds: bool = field(
        default=True, metadata={"help": "First scale every vector to unit length; the released code does not."}
    )
    learn: str = field(
        default="caption",
        metadata={
            "help": "caption: the caption and an end token; answer: the answer in messages and a line feed, as in the "
            "released code.",
            "choices": ["caption", "answer"],
        },
    )
    standardize_image_embeds: bool = field(
        default=False,
        metadata={"help": "Standardize the vectors to mean 0 and mean variance 1 over the training set."},
    )


@dataclass
class PreferArguments(DataArguments):
    """Stage 3 reads pairs of answers, of which both are whole and padded."""
