"""Adds Unicorn's classes to transformers' Auto classes without importing transformers.

`import unicorn_hf` must be cheap, yet `AutoModelForImageTextToText.from_pretrained(folder)` must find the class after.
So each Auto class gets ours at the moment transformers loads the module that holds it: at once where that has
happened already, and otherwise through an import hook. Our modules import the Auto modules themselves, so either of the
two may be the first to be complete: the hook watches both, and registers when both are there.
"""

import importlib
import importlib.abc
import importlib.util
import sys

# Auto module of transformers -> our module, and which of its classes goes to which Auto class
_REGISTRATIONS = {
    "transformers.models.auto.configuration_auto": (
        "unicorn_hf.modeling.configuration_unicorn",
        {"AutoConfig": "UnicornConfig"},
    ),
    "transformers.models.auto.modeling_auto": (
        "unicorn_hf.modeling.modeling_unicorn",
        {"AutoModel": "UnicornModel", "AutoModelForImageTextToText": "UnicornForConditionalGeneration"},
    ),
    "transformers.models.auto.processing_auto": (
        "unicorn_hf.modeling.processing_unicorn",
        {"AutoProcessor": "UnicornProcessor"},
    ),
}
_AUTO_MODULE_OF = {ours: auto for auto, (ours, _) in _REGISTRATIONS.items()}


def register_when_loaded() -> None:
    for auto_module in _REGISTRATIONS:
        if auto_module in sys.modules:
            _register(auto_module)
    if not any(isinstance(finder, _ModuleFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _ModuleFinder())


def _register(auto_module: str) -> None:
    our_module, classes = _REGISTRATIONS[auto_module]
    auto, ours = sys.modules.get(auto_module), importlib.import_module(our_module)
    if not all(hasattr(auto, name) for name in classes) or not all(hasattr(ours, name) for name in classes.values()):
        return  # one of the two is still being imported; this runs again when it is complete
    from unicorn_hf.modeling.configuration_unicorn import UnicornConfig

    for auto_class, our_class in classes.items():
        key = UnicornConfig.model_type if auto_class == "AutoConfig" else UnicornConfig
        getattr(auto, auto_class).register(key, getattr(ours, our_class), exist_ok=True)


class _ModuleFinder(importlib.abc.MetaPathFinder):
    """Finds the watched modules as Python would, and registers our classes after one of them has run."""

    def find_spec(self, fullname, path, target=None):
        auto_module = fullname if fullname in _REGISTRATIONS else _AUTO_MODULE_OF.get(fullname)
        if auto_module is None:
            return None
        sys.meta_path.remove(self)  # so that the search below does not come back here
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            sys.meta_path.insert(0, self)
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def run_and_register(module):
            run(module)
            _register(auto_module)

        spec.loader.exec_module = run_and_register
        return spec
