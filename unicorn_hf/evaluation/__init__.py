"""Ask a trained model about images, and score its answers."""

from unicorn_hf.lazy import lazy_names

_MODULES = {"EvaluateConfig": ".config", "Evaluation": ".evaluation", "Score": ".scores", "evaluate": ".evaluation"}
__all__ = [*_MODULES]
__getattr__, __dir__ = lazy_names(__name__, _MODULES)
