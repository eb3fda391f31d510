"""Stages 1 and 2: seeds -> captions -> conversations; and captions -> preference pairs.

The grammar writer works without a model. The writers for language models need the extra `synthesis`.
"""

from unicorn_hf.lazy import lazy_names

_MODULES = {
    "BatchWriter": ".batch_writer",
    "CaptionConfig": ".config",
    "CaptionFilters": ".caption_filters",
    "ChatWriter": ".chat_writer",
    "GrammarWriter": ".grammar",
    "InstructionConfig": ".config",
    "PreferenceConfig": ".config",
    "Prices": ".usage",
    "TransformersWriter": ".transformers_writer",
    "read_seeds": ".seeds",
    "report_captions": ".report",
    "retry_failed": ".job",
    "write_captions": ".captions",
    "write_instructions": ".instructions",
    "write_preferences": ".preferences",
}
__all__ = [*_MODULES]
__getattr__, __dir__ = lazy_names(__name__, _MODULES)
