"""Train a vision-language model from text alone.

Importing this package is cheap: a name is imported when it is first used. `import unicorn_hf.modeling` adds the model
classes to the Auto classes of transformers.
"""

import importlib

__version__ = "0.1.0"

# Every public name, and the module that holds it.
_PUBLIC = {
    "BatchWriter": "unicorn_hf.synthesis",
    "CaptionFilters": "unicorn_hf.synthesis",
    "ChatWriter": "unicorn_hf.synthesis",
    "EmbeddingLookup": "unicorn_hf.dataset_scripts.embedding_lookup",
    "GrammarWriter": "unicorn_hf.synthesis",
    "InputError": "unicorn_hf.errors",
    "MeanShift": "unicorn_hf.transfer",
    "MissingExtraError": "unicorn_hf.errors",
    "ModalityTransfer": "unicorn_hf.transfer",
    "Moments": "unicorn_hf.transfer",
    "Prices": "unicorn_hf.synthesis",
    "ReAlign": "unicorn_hf.transfer",
    "TransformersWriter": "unicorn_hf.synthesis",
    "UnicornBuilder": "unicorn_hf.dataset_scripts.unicorn",
    "UnicornConfig": "unicorn_hf.modeling",
    "UnicornForConditionalGeneration": "unicorn_hf.modeling",
    "UnicornModel": "unicorn_hf.modeling",
    "UnicornProcessor": "unicorn_hf.modeling",
    "embed": "unicorn_hf.embedding",
    "evaluate": "unicorn_hf.evaluation",
    "import_released": "unicorn_hf.hub",
    "load_encoder": "unicorn_hf.embedding",
    "load_unicorn": "unicorn_hf.dataset_scripts.unicorn",
    "measure_gap": "unicorn_hf.transfer",
    "publish": "unicorn_hf.hub",
    "push_to_hub": "unicorn_hf.hub",
    "report_captions": "unicorn_hf.synthesis",
    "retry_failed": "unicorn_hf.synthesis",
    "write_captions": "unicorn_hf.synthesis",
    "write_instructions": "unicorn_hf.synthesis",
}

__all__ = [*sorted(_PUBLIC), "__version__"]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__():
    return __all__
