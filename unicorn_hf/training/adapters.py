"""The model of stages 2 and 3: an earlier stage's output, or what LoRA made of it, for full training or an adapter."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from unicorn_hf.data.data_files import is_hub_id
from unicorn_hf.errors import InputError
from unicorn_hf.training.options import LORA, options_given

ALL_LINEAR = "all-linear"


def load_model_to_finetune(model_args, *, trust_remote_code: bool = False):
    """The model of `--model_name_or_path`, ready for `get_peft_config` or for full training.

    If the folder holds an adapter, its base model is loaded too. With `use_peft` that adapter is trained further, and
    an adapter of the same base is saved. Without it, the adapter is merged first, and a whole model is saved.

    Args:
        model_args: TRL's `ModelConfig`.

    Returns:
        `UnicornForConditionalGeneration`, or a `peft.PeftModel` over one with a trainable adapter.

    Raises:
        InputError: the model cannot be loaded or is not a Unicorn model, or LoRA options differ from the adapter's.
    """
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForImageTextToText
    from trl import get_quantization_config

    name, revision = model_args.model_name_or_path, model_args.model_revision
    adapter = read_adapter(name, revision)
    if adapter is not None:
        _check_same_adapter(model_args, adapter)
        base, base_revision = adapter.base_model_name_or_path, adapter.revision or "main"
        if read_adapter(base, base_revision) is not None:
            raise InputError(
                f"{name}: is an adapter of {base}, which is an adapter too; merge that one into its base first"
            )
    else:
        base, base_revision = name, revision
    with loading(base, base_revision):
        config = AutoConfig.from_pretrained(base, revision=base_revision, trust_remote_code=trust_remote_code)
        if config.model_type != "unicorn":
            raise InputError(
                f"{base}: is a {config.model_type} model; this stage starts from the output of an earlier one, and"
                " stage 1 makes one of a language model (`unicorn-hf train pretrain`)"
            )
        model = AutoModelForImageTextToText.from_pretrained(
            base,
            revision=base_revision,
            dtype=model_args.dtype,
            attn_implementation=model_args.attn_implementation,
            quantization_config=get_quantization_config(model_args),
            trust_remote_code=trust_remote_code,
        )
    if Path(base).is_dir():  # an adapter saves the path of its base, and a relative one may be read as a Hub id
        base = model.name_or_path = str(Path(base).resolve())
    if adapter is None:
        return model
    with loading(name, revision):
        model = PeftModel.from_pretrained(model, name, revision=revision, is_trainable=model_args.use_peft)
    model.active_peft_config.base_model_name_or_path = base
    if not model_args.use_peft:
        return model.merge_and_unload()
    if model_args.lora_target_modules == ALL_LINEAR and (missing := _layers_without_adapter(model)):
        raise InputError(
            f"lora_target_modules is {ALL_LINEAR!r}, but the adapter {name}, which is trained further, leaves out"
            f" {len(missing)} linear layers, such as {missing[0]}; leave out the option, or merge the adapter first"
            " (docs/training.md) and train a new one"
        )
    return model


def new_adapter(model, model_args):
    """The `peft.LoraConfig` of a new adapter for `model`; None if it has one already, or is trained in full.

    Raises:
        InputError: the layers for the adapter are not named, or a name does not exist in the model.
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
        config.target_modules = {config.target_modules}  # a single name; peft would read it as a regular expression
    if config.modules_to_save is None:  # the projector is trained in full, beside the adapters
        config.modules_to_save = ["multi_modal_projector"]
        if config.target_modules == ALL_LINEAR:
            config.exclude_modules = r".*(multi_modal_projector|vision_tower).*"
    config.revision = None if model_args.model_revision == "main" else model_args.model_revision
    _check_names(model, config)
    _check_kinds(model, config)
    _check_tied_layers(model, config)
    return config


def read_adapter(name: str, revision: str = "main"):
    """The `peft.PeftConfig` of a folder or Hub id; None if it holds no adapter or does not exist."""
    from peft import PeftConfig
    from transformers.utils import find_adapter_config_file

    try:
        if find_adapter_config_file(name, revision=revision) is None:
            return None
        return PeftConfig.from_pretrained(name, revision=revision)
    except (OSError, ValueError):  # loading the model reports what is wrong
        return None


@contextlib.contextmanager
def loading(name: str, revision: str = "main") -> Iterator[None]:
    """Turn errors about a model's name, revision or files into an `InputError`."""
    if not Path(name).exists() and not is_hub_id(name) and not re.fullmatch(r"[\w-]+(\.[\w-]+)*", name):
        raise InputError(f"{name}: no such folder; expected the folder of a model, or its id on the Hub")
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError) as error:
        where = name if revision == "main" else f"{name} (revision {revision})"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        missing = "" if Path(name).exists() else "no such folder, and the Hub says: "
        raise InputError(f"{where}: cannot be loaded as a model ({missing}{reason})") from error


def _check_names(model, config) -> None:
    """Raise `InputError` for a name in a `peft.LoraConfig` that the model does not have; peft ignores most of them."""
    modules = [name for name, _ in model.named_modules()]
    parameters = [name for name, _ in model.named_parameters()]
    if isinstance(config.target_modules, str) and config.target_modules != ALL_LINEAR:
        try:
            fitting = any(_is_one_of(config.target_modules, name) for name in modules)
        except re.error as error:
            raise InputError(
                f"lora_target_modules is {config.target_modules!r}, which is not a regular expression ({error})"
            ) from error
        if not fitting:
            raise InputError(f"lora_target_modules is {config.target_modules!r}, which matches no layer of the model")
    for option, given, known in (
        ("lora_target_modules", config.target_modules, modules),
        ("lora_target_parameters", config.target_parameters, parameters),
        ("lora_modules_to_save", config.modules_to_save, modules),
    ):
        for wanted in () if given is None or isinstance(given, str) else sorted(given):
            if not any(_is_one_of([wanted], name) for name in known):
                raise InputError(f"{option} has {wanted!r}, but the model has nothing of that name")


def _check_kinds(model, config) -> None:
    """Raise `InputError` if `lora_target_modules` takes in more than layers with a matrix, such as whole blocks."""
    for name, module in model.named_modules():
        is_layer = next(module.children(), None) is None and getattr(getattr(module, "weight", None), "ndim", 2) > 1
        if name and not is_layer and _is_one_of(config.target_modules, name):
            raise InputError(
                f"lora_target_modules takes in {name}, a {type(module).__name__}; an adapter is for linear layers and"
                " embeddings: name those alone, for instance all-linear, or q_proj v_proj"
            )


def _check_tied_layers(model, config) -> None:
    """Raise `InputError` if an adapter is meant for the embedding or the head, and both have the same weights.

    The adapter would change only one of them, but both once it is merged; peft only warns.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embedding.weight is not head.weight:
        return
    parameters = [name.removesuffix(".weight") for name in config.target_parameters or []]
    for name, module in model.named_modules():
        if module is not embedding and module is not head:
            continue
        if _is_one_of(config.target_modules, name) or _is_one_of(parameters, name):
            raise InputError(
                f"{name} cannot have an adapter: the embedding and the head of this model have the same weights, so the"
                f" merged model would differ from the trained one; train it in full with --lora_modules_to_save"
                f" {name.rpartition('.')[2]} multi_modal_projector"
            )


def _is_one_of(targets, name: str) -> bool:
    """Whether peft takes a module for one of `lora_target_modules`: a regular expression, names, or `ALL_LINEAR`."""
    if isinstance(targets, str):
        return targets != ALL_LINEAR and re.fullmatch(targets, name) is not None  # all linear layers but the head
    return any(name == each or name.endswith(f".{each}") for each in targets or [])


def _layers_without_adapter(model) -> list[str]:
    """The linear layers in the decoder of a `peft.PeftModel` that its adapter does not cover."""
    from torch import nn

    ours = ("base_layer", "lora_A", "lora_B")
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".language_model." in name and not set(ours) & set(name.split("."))
    ]


def _check_same_adapter(model_args, adapter) -> None:
    if not model_args.use_peft:
        return
    given = options_given(model_args)
    for option, attribute in LORA.items():
        theirs = _plain(getattr(adapter, attribute, None))
        if option == "lora_target_modules" and given.get(option) == ALL_LINEAR:
            continue  # the adapter lists layer names, so this is checked once the model is loaded
        if option in given and _plain(given[option]) != theirs:
            raise InputError(
                f"{option} is {given[option]!r}, but the adapter {model_args.model_name_or_path}, which is trained"
                f" further, has {theirs!r}; leave out the option, or merge the adapter first (docs/training.md) and"
                " train a new one"
            )


def _plain(value):
    if isinstance(value, list | tuple | set):
        return sorted(value)
    if isinstance(value, str) and value.isidentifier():
        return [value]  # as peft saves a single name
    return getattr(value, "value", value)
