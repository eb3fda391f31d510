"""TRL stages: what they read, what is frozen, how samples become batches."""

from unicorn_hf.training.adapters import load_model_to_finetune, loading, new_adapter
from unicorn_hf.training.arguments import DataArguments, FinetuneArguments, PreferArguments, PretrainArguments
from unicorn_hf.training.batching import LengthGroupedSampler
from unicorn_hf.training.chat_templates import stop_at_the_end_of_a_turn
from unicorn_hf.training.collator import PairCollator, UnicornCollator, is_padding_free
from unicorn_hf.training.freezing import freeze_all_but_projector, freeze_vision_tower
from unicorn_hf.training.mixture import Mixture
from unicorn_hf.training.options import (
    check_options,
    option_classes,
    parse_options,
    set_released_prompt,
    set_tokenizer_options,
)
from unicorn_hf.training.standardization import standardize_image_embeds
from unicorn_hf.training.tokenization import tokenize_captions, tokenize_conversations, tokenize_pairs
from unicorn_hf.training.trainer import PreferenceTrainer, UnicornTrainer, check_trackers

__all__ = [
    "DataArguments",
    "FinetuneArguments",
    "LengthGroupedSampler",
    "Mixture",
    "PairCollator",
    "PreferArguments",
    "PreferenceTrainer",
    "PretrainArguments",
    "UnicornCollator",
    "UnicornTrainer",
    "check_options",
    "check_trackers",
    "freeze_all_but_projector",
    "freeze_vision_tower",
    "is_padding_free",
    "load_model_to_finetune",
    "loading",
    "new_adapter",
    "option_classes",
    "parse_options",
    "set_released_prompt",
    "set_tokenizer_options",
    "standardize_image_embeds",
    "stop_at_the_end_of_a_turn",
    "tokenize_captions",
    "tokenize_conversations",
    "tokenize_pairs",
]
