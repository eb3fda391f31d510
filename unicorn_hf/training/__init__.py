"""TRL stages: what they read, what is frozen, how samples become batches."""

from unicorn_hf.training.arguments import DataArguments, FinetuneArguments, PretrainArguments
from unicorn_hf.training.collator import ImageEmbedsCollator
from unicorn_hf.training.freezing import freeze_all_but_projector, freeze_vision_tower
from unicorn_hf.training.standardization import standardize_image_embeds
from unicorn_hf.training.tokenization import tokenize_captions, tokenize_conversations

__all__ = [
    "DataArguments",
    "FinetuneArguments",
    "ImageEmbedsCollator",
    "PretrainArguments",
    "freeze_all_but_projector",
    "freeze_vision_tower",
    "standardize_image_embeds",
    "tokenize_captions",
    "tokenize_conversations",
]
