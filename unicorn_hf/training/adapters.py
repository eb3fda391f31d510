"""Stage 2's model: stage 1's output, or what LoRA has made of it, to be trained in full or by an adapter."""

import contextlib
from collections.abc import Iterator

from unicorn_hf.errors import InputError
from unicorn_hf.training.options import LORA, options_given


def load_model_to_finetune(model_args, *, trust_remote_code: bool = False):
    """The model of `--model_name_or_path`, ready for `get_peft_config` or for full training.

    A folder of an adapter is its base model and the adapter. With `use_peft` that adapter is trained further, and what
    is saved is an adapter of the same base; without, it is merged into the base first, and a whole model is saved.

    Args:
        model_args: TRL's `ModelConfig`.

    Returns:
        `UnicornForConditionalGeneration`, or a `peft.PeftModel` over one, whose adapter is trained further.

    Raises:
        InputError: it cannot be loaded or is no Unicorn model; options of LoRA differ from the adapter's own.
    """
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText
    from trl import get_quantization_config

    name, revision = model_args.model_name_or_path, model_args.model_revision
    adapter = read_adapter(name, revision)
    if adapter is not None:
        _check_same_adapter(model_args, adapter)
        base, base_revision = adapter.base_model_name_or_path, adapter.revision or "main"
        if read_adapter(base, base_revision) is not None:
            raise InputError(
                f"{name}: is an adapter of {base}, which is an adapter itself; merge that into its base first"
            )
    else:
        base, base_revision = name, revision
    with loading(base, base_revision):
        model = AutoModelForImageTextToText.from_pretrained(
            base,
            revision=base_revision,
            dtype=model_args.dtype,
            attn_implementation=model_args.attn_implementation,
            quantization_config=get_quantization_config(model_args),
            trust_remote_code=trust_remote_code,
        )
    if model.config.model_type != "unicorn":
        raise InputError(f"{base}: is a {model.config.model_type} model; stage 2 starts from the output of stage 1")
    if adapter is None:
        return model
    with loading(name, revision):
        model = PeftModel.from_pretrained(model, name, revision=revision, is_trainable=model_args.use_peft)
    return model if model_args.use_peft else model.merge_and_unload()


def new_adapter(model, model_args):
    """The `peft.LoraConfig` of an adapter to be made for `model`; `None` where it has one, or is trained in full.

    Raises:
        InputError: nobody says which layers get it.
    """
    from peft import PeftModel
    from trl import get_peft_config

    if not model_args.use_peft or isinstance(model, PeftModel):
        return None
    if model_args.lora_target_modules is None and model_args.lora_target_parameters is None:
        raise InputError(
            "use_peft needs --lora_target_modules, the layers that get an adapter: all-linear, names, or the regular"
            " expression of recipes/finetune/*-lora.yaml"
        )
    config = get_peft_config(model_args)
    if isinstance(config.target_modules, str) and config.target_modules.isidentifier():
        config.target_modules = {config.target_modules}  # a lone name, which peft would take for a regular expression
    if config.modules_to_save is None:  # the projector is trained as a whole, beside the adapters
        config.modules_to_save = ["multi_modal_projector"]
        if config.target_modules == "all-linear":
            config.exclude_modules = r".*(multi_modal_projector|vision_tower).*"
    config.revision = None if model_args.model_revision == "main" else model_args.model_revision
    return config


def read_adapter(name: str, revision: str = "main"):
    """The `peft.PeftConfig` of a folder or Hub id; `None` where that holds no adapter, or is not there."""
    from peft import PeftConfig
    from transformers.utils import find_adapter_config_file

    try:
        if find_adapter_config_file(name, revision=revision) is None:
            return None
        return PeftConfig.from_pretrained(name, revision=revision)
    except (OSError, ValueError):  # whoever loads it says what is wrong
        return None


@contextlib.contextmanager
def loading(name: str, revision: str = "main") -> Iterator[None]:
    """Raise what is wrong with a model's name, revision or files as an `InputError`."""
    try:
        yield
    except (OSError, ValueError) as error:
        where = name if revision == "main" else f"{name} (revision {revision})"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{where}: cannot be loaded as a model ({reason})") from error


def _check_same_adapter(model_args, adapter) -> None:
    if not model_args.use_peft:
        return
    given = options_given(model_args)
    for option, attribute in LORA.items():
        theirs = _plain(getattr(adapter, attribute, None))
        if option in given and _plain(given[option]) != theirs:
            raise InputError(
                f"{option} is {given[option]!r}, but the adapter {model_args.model_name_or_path} has {theirs!r} and is"
                " trained further as it is; leave the option out, or merge the adapter first (docs/training.md) and"
                " train a new one"
            )


def _plain(value):
    if isinstance(value, list | tuple | set):
        return sorted(value)
    return getattr(value, "value", value)
