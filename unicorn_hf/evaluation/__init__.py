"""What a model answers about pictures, and what those answers are worth."""

from unicorn_hf.lazy import lazy_names

_MODULES = {"EvaluateConfig": ".config", "Evaluation": ".evaluation", "Score": ".scores", "evaluate": ".evaluation"}
__all__ = [*_MODULES]
__getattr__, __dir__ = lazy_names(__name__, _MODULES)
