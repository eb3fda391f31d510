"""The Unicorn model family: the files that travel to the Hub with every model.

It imports torch and transformers only, so that it loads under `trust_remote_code` where this package is not installed.
A name is imported when it is first used: the configuration costs no import of a modeling file.
"""

import importlib

_PUBLIC = {
    "UnicornConfig": "configuration_unicorn",
    "UnicornForConditionalGeneration": "modeling_unicorn",
    "UnicornModel": "modeling_unicorn",
    "UnicornPreTrainedModel": "modeling_unicorn",
    "UnicornProcessor": "processing_unicorn",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return __all__
