"""Train a vision-language model from text alone.

Importing this package is cheap: a name is imported when it is first used. `import unicorn_hf.modeling` registers the
model classes with the Auto classes of transformers.
"""

from unicorn_hf.lazy import lazy_names

__version__ = "0.1.0"

# Every public name, and the module that holds it.
_PUBLIC = {
    "BatchWriter": "unicorn_hf.synthesis",
    "CaptionFilters": "unicorn_hf.synthesis",
    "CaptionConfig": "unicorn_hf.synthesis",
    "ChatWriter": "unicorn_hf.synthesis",
    "EmbedConfig": "unicorn_hf.embedding",
    "EmbeddingLookup": "unicorn_hf.dataset_scripts.embedding_lookup",
    "GrammarWriter": "unicorn_hf.synthesis",
    "EvaluateConfig": "unicorn_hf.evaluation",
    "InputError": "unicorn_hf.errors",
    "InstructionConfig": "unicorn_hf.synthesis",
    "MeanShift": "unicorn_hf.transfer",
    "MissingExtraError": "unicorn_hf.errors",
    "ModalityTransfer": "unicorn_hf.transfer",
    "Moments": "unicorn_hf.transfer",
    "PreferenceConfig": "unicorn_hf.synthesis",
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
    "import_released": "unicorn_hf.dataset_scripts.publishing",
    "load_encoder": "unicorn_hf.embedding",
    "load_unicorn": "unicorn_hf.dataset_scripts.unicorn",
    "measure_gap": "unicorn_hf.transfer",
    "publish": "unicorn_hf.dataset_scripts.publishing",
    "push_to_hub": "unicorn_hf.hub",
    "report_captions": "unicorn_hf.synthesis",
    "retry_failed": "unicorn_hf.synthesis",
    "write_captions": "unicorn_hf.synthesis",
    "write_instructions": "unicorn_hf.synthesis",
    "write_preferences": "unicorn_hf.synthesis",
}

__all__ = [*sorted(_PUBLIC), "__version__"]
__getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
