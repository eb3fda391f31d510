"""The Unicorn model family: the files that travel to the Hub with every model.

It imports torch and transformers only, so that it loads under `trust_remote_code` where this package is not installed.
Importing it adds the classes to transformers' Auto classes, which then read a Unicorn folder without it.
"""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from .configuration_unicorn import UnicornConfig
from .modeling_unicorn import UnicornForConditionalGeneration, UnicornModel, UnicornPreTrainedModel
from .processing_unicorn import UnicornProcessor

AutoConfig.register(UnicornConfig.model_type, UnicornConfig)
AutoModel.register(UnicornConfig, UnicornModel)
AutoModelForImageTextToText.register(UnicornConfig, UnicornForConditionalGeneration)
AutoProcessor.register(UnicornConfig, UnicornProcessor)

__all__ = [
    "UnicornConfig",
    "UnicornForConditionalGeneration",
    "UnicornModel",
    "UnicornPreTrainedModel",
    "UnicornProcessor",
]
