"""Stages 1 and 2: seeds -> captions -> conversations.

The grammar writer works without a model. The writers for language models need the extra `synthesis`.
"""

import importlib

from unicorn_hf.synthesis.captions import write_captions
from unicorn_hf.synthesis.grammar import GrammarWriter
from unicorn_hf.synthesis.instructions import write_instructions
from unicorn_hf.synthesis.seeds import read_seeds

# Names whose modules need pydantic, and the module that holds each.
_LAZY = {
    "BatchWriter": "batch_writer",
    "CaptionFilters": "caption_filters",
    "ChatWriter": "chat_writer",
    "Prices": "usage",
    "TransformersWriter": "transformers_writer",
    "report_captions": "report",
    "retry_failed": "job",
}

__all__ = [*_LAZY, "GrammarWriter", "read_seeds", "write_captions", "write_instructions"]


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
