"""The Unicorn model family. Its files are saved to the Hub with every model.

They import only torch and transformers, so they also load by `trust_remote_code`, without this package. Importing this
module registers the classes with transformers' Auto classes, which then load a Unicorn folder without remote code.
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
