"""Embed texts or images as vectors of one contrastive space."""

from unicorn_hf.lazy import lazy_names

_MODULES = {
    "EmbedConfig": ".config",
    "EmbeddingJob": ".job",
    "Encoder": ".encoder",
    "embed": ".step",
    "load_encoder": ".encoders",
}
__all__ = [*_MODULES]
__getattr__, __dir__ = lazy_names(__name__, _MODULES)
