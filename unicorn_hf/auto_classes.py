"""Adds Unicorn's classes to transformers' Auto classes without importing transformers.

`import unicorn_hf` must be cheap, yet `AutoModelForImageTextToText.from_pretrained(folder)` must find the class after it.
So each Auto class gets ours at the moment transformers loads the module that holds it: at once where that has
happened already, and otherwise through an import hook on these three modules.
"""

import importlib.abc
import importlib.util
import sys


def _register_config(module):
    from unicorn_hf.modeling.configuration_unicorn import UnicornConfig

    module.AutoConfig.register("unicorn", UnicornConfig, exist_ok=True)


def _register_models(module):
    from unicorn_hf.modeling.configuration_unicorn import UnicornConfig
    from unicorn_hf.modeling.modeling_unicorn import UnicornForConditionalGeneration, UnicornModel

    module.AutoModel.register(UnicornConfig, UnicornModel, exist_ok=True)
    module.AutoModelForImageTextToText.register(UnicornConfig, UnicornForConditionalGeneration, exist_ok=True)


def _register_processor(module):
    from unicorn_hf.modeling.configuration_unicorn import UnicornConfig
    from unicorn_hf.modeling.processing_unicorn import UnicornProcessor

    module.AutoProcessor.register(UnicornConfig, UnicornProcessor, exist_ok=True)


_REGISTER = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.modeling_auto": _register_models,
    "transformers.models.auto.processing_auto": _register_processor,
}


class _AutoModuleFinder(importlib.abc.MetaPathFinder):
    """Finds the three Auto modules as Python would, and registers our class after each has run."""

    def find_spec(self, fullname, path, target=None):
        register = _REGISTER.get(fullname)
        if register is None:
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
            register(module)

        spec.loader.exec_module = run_and_register
        return spec


def register_when_loaded() -> None:
    for name, register in _REGISTER.items():
        if name in sys.modules:
            register(sys.modules[name])
    if not any(isinstance(finder, _AutoModuleFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AutoModuleFinder())
