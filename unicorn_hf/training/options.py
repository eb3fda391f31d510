"""Check the options of TRL and transformers: an option that a stage does not read or cannot use is refused by name."""

import math
import re
from dataclasses import MISSING, fields
from pathlib import Path

import trl
from packaging.version import Version

from unicorn_hf.errors import InputError
from unicorn_hf.training.arguments import PreferArguments, PretrainArguments

_EVALUATION = "a stage measures nothing while it trains; take checkpoints (--save_steps) and run `unicorn-hf evaluate`"
_PACKING = "samples are not packed; use --batching padding-free for batches without padding"
_LOSS = "only the caption (stage 1) or the assistant's turns (stage 2) are in the loss"
_LIGER = "Liger has no kernels for this model, and the loss is computed in chunks without them"
# Option of `SFTConfig` or `DPOConfig` -> why no stage reads it, and what does the same.
UNREAD = {
    **dict.fromkeys(
        (
            "eval_strategy",
            "eval_steps",
            "eval_delay",
            "eval_on_start",
            "eval_packing",
            "eval_do_concat_batches",
            "eval_use_gather_object",
            "eval_accumulation_steps",
            "per_device_eval_batch_size",
            "prediction_loss_only",
            "include_for_metrics",
            "batch_eval_metrics",
            "bf16_full_eval",
            "fp16_full_eval",
            "load_best_model_at_end",
            "metric_for_best_model",
            "greater_is_better",
            "label_names",
            "do_eval",
            "do_predict",
        ),
        _EVALUATION,
    ),
    **dict.fromkeys(("packing", "packing_strategy", "padding_free"), _PACKING),
    **dict.fromkeys(("completion_only_loss", "assistant_only_loss"), _LOSS),
    **dict.fromkeys(("use_liger_kernel", "liger_kernel_config"), _LIGER),
    "dataset_text_field": "stage 1 reads the column 'caption' or 'text', and stage 2 'messages'; rename yours",
    "dataset_kwargs": "the stage tokenizes the data itself; its options are --overlong and --max_length",
    "truncation_mode": "a sample is cut at its end; use --overlong cut or drop",
    "shuffle_dataset": "samples are always drawn at random; the order depends on --seed or --data_seed",
    "length_column_name": "the stage counts the tokens itself, in the column 'length'",
    "model_init_kwargs": "use --dtype, --attn_implementation, --model_revision, --trust_remote_code, --load_in_4bit",
    "router_aux_loss_coef": "the model returns no outputs of its experts' router, so there is no such loss; use 0",
}
UNREAD_OF_PAIRS = {
    **dict.fromkeys(
        ("precompute_ref_log_probs", "precompute_ref_batch_size"),
        "TRL has no such step for data with images; LoRA (--use_peft) needs no second model in memory either",
    ),
    "padding_free": "pairs are padded",
    "truncation_mode": "a pair above max_length is left out",
    "pad_token": "the model's tokenizer says it",
    "label_smoothing_factor": "label_smoothing, for the losses robust and exo_pair, is what pairs have",
}
# What stages 2 and 3 are for: options of `ModelConfig` that stage 1, which trains the projector alone, does not read
# (of LoRA, with the name that `peft.LoraConfig` has for it).
LORA = {
    "lora_r": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "lora_target_modules": "target_modules",
    "lora_target_parameters": "target_parameters",
    "lora_modules_to_save": "modules_to_save",
    "lora_task_type": "task_type",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}
BITS = ("load_in_8bit", "load_in_4bit")
FOUR_BITS = ("bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage")
# Numeric options -> their allowed interval; ( and ) exclude a bound. All other numbers must be finite and 0 or more.
_COUNT, _POSITIVE, _SHARE = "[1, inf)", "(0, inf)", "[0, 1)"
RANGES = {
    **dict.fromkeys(
        (
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "torch_empty_cache_steps",
            "dataloader_prefetch_factor",
            "dataset_num_proc",
            "ddp_bucket_cap_mb",
            "ddp_timeout",
            "max_length",
            "pad_to_multiple_of",
            "lora_r",
            "num_image_tokens",
            "ref_model_sync_steps",
        ),
        _COUNT,
    ),
    **dict.fromkeys(
        ("num_train_epochs", "learning_rate", "logging_steps", "save_steps", "lora_alpha", "beta", "discopop_tau"),
        _POSITIVE,
    ),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor", "lora_dropout"), _SHARE),
    **dict.fromkeys(("seed", "data_seed"), "[0, 4294967295]"),  # NumPy's limit
    **dict.fromkeys(("max_steps", "local_rank"), "[-1, inf)"),
    **dict.fromkeys(("warmup_ratio", "ld_alpha", "ref_model_mixup_alpha"), "[0, 1]"),
    "label_smoothing": "[0, 0.5)",
}


def parse_options(stage_arguments: type, args: list[str] | None = None) -> tuple:
    """The `option_classes` of a stage, filled from `args` (the command line) and its YAML.

    Raises:
        InputError: an option is unknown, a value is not allowed, or the YAML file cannot be read.
    """
    parser = _Parser(option_classes(stage_arguments))
    try:
        return parser.parse_args_and_config(args)
    except InputError:
        raise
    except Exception as error:  # the dataclasses query torch, accelerate and the machine, which may raise anything
        raise InputError(f"The options cannot be used: {' '.join(str(error).split())[:400]}") from error


def option_classes(stage_arguments: type) -> tuple[type, type, type]:
    """A stage's arguments, TRL's `SFTConfig` (of stage 3 its `DPOConfig`), and its `ModelConfig`."""
    training_config = trl.DPOConfig if issubclass(stage_arguments, PreferArguments) else trl.SFTConfig
    return stage_arguments, training_config, trl.ModelConfig


class _Parser(trl.TrlParser):
    def error(self, message: str):
        """Replaces argparse's method, which first prints some three hundred lines of usage."""
        raise InputError(f"The options cannot be used: {message}")


def check_options(data_args, training_args, model_args) -> None:
    """Raise `InputError` for an option that this stage would ignore, or that has an unusable value.

    Options at their default are always allowed.

    Args:
        data_args: the stage's `PretrainArguments`, `FinetuneArguments` or `PreferArguments`.
        training_args, model_args: the other two of its `option_classes`.
    """
    if model_args.model_name_or_path is None:
        raise InputError(
            "Name the model by --model_name_or_path: stage 1 a language model, the others the output of the one before"
        )
    _check_output(Path(training_args.output_dir), is_adapter=bool(model_args.use_peft))
    given = options_given(data_args) | options_given(training_args) | options_given(model_args)
    if {"version", "chat_template_path"} <= set(given):
        raise InputError("version and chat_template_path both set the prompt; use only one of them")
    if model_args.model_revision != "main" and Path(model_args.model_name_or_path).exists():
        raise InputError(
            f"model_revision is {model_args.model_revision!r}, but {model_args.model_name_or_path} is a folder, which"
            " has no revisions; leave out the option, or name the model by its id on the Hub"
        )
    if given.get("router_aux_loss_coef") == 0:
        del given["router_aux_loss_coef"]  # there is no such loss
    unread = UNREAD
    if isinstance(data_args, PretrainArguments):
        reason = "stage 1 trains only the projector and keeps the language model frozen; this belongs to stage 2"
        unread = unread | dict.fromkeys(("use_peft", *LORA, *BITS, *FOUR_BITS), reason)
    else:
        if given.pop("assistant_only_loss", False):
            training_args.assistant_only_loss = False  # the labels are set already; the trainer would need the texts
        if not model_args.use_peft:
            unread = unread | dict.fromkeys(LORA, "it is an option of LoRA; add --use_peft")
            unread = unread | dict.fromkeys(BITS, "weights of 4 or 8 bits cannot be trained; add --use_peft")
        if not model_args.load_in_4bit:
            unread = unread | dict.fromkeys(FOUR_BITS, "it is for weights of 4 bits; add --load_in_4bit")
    if isinstance(data_args, PreferArguments):
        weights = training_args.loss_weights
        if weights is not None and not (all(0 <= weight < math.inf for weight in weights) and any(weights)):
            raise InputError(f"loss_weights is {weights}; expected numbers of 0 or more, and not only 0")
        unread = unread | UNREAD_OF_PAIRS
    elif Version(trl.__version__) < Version("1.16"):  # (2026-11)
        unread = unread | {"label_smoothing_factor": f"TRL {trl.__version__} fails on it; 1.16 does not"}
    if data_args.streaming:
        unread = unread | {"dataset_num_proc": "a stream is tokenized while it is read; --dataloader_num_workers helps"}
        if training_args.train_sampling_strategy == "sequential":
            raise InputError("train_sampling_strategy is 'sequential', but a stream is always shuffled in a buffer")
    for name in unread:  # in this order: eval_strategy also sets do_eval, and should be the one named
        if name in given:
            raise InputError(f"{name} is {given[name]!r}, which this stage does not read: {unread[name]}")
    for name, value in (("save_strategy", "best"), ("lr_scheduler_type", "reduce_lr_on_plateau")):
        if getattr(training_args, name) == value:
            raise InputError(f"{name} is {value!r}, which needs an evaluation: {_EVALUATION}")
    _check_values(given)


def _check_output(output_dir: Path, is_adapter: bool) -> None:
    """Raise `InputError` if the output would lie beside one of the other kind: the folder would load as the adapter."""
    other, kind, saved = (
        ("config.json", "a model", "an adapter") if is_adapter else ("adapter_config.json", "an adapter", "a model")
    )
    for folder in (output_dir, *sorted(output_dir.glob("checkpoint-*"))):
        if (folder / other).is_file():
            raise InputError(
                f"{folder}: holds {kind}, and this run saves {saved}, which cannot lie in the same folder; name another"
                " --output_dir, or remove it"
            )


def _check_values(given: dict) -> None:
    for name, value in given.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            interval = RANGES.get(name, "[0, inf)")
            if not _is_in(value, interval):
                raise InputError(f"{name} is {value!r}; expected a number in {interval}")
    if not re.fullmatch(r"linear|mlp[1-9]\d*x_gelu", given.get("projector_type", "linear")):
        raise InputError(
            f"projector_type is {given['projector_type']!r}; expected linear, or mlp2x_gelu, mlp3x_gelu, ..."
        )
    if given.get("lora_task_type", "CAUSAL_LM") != "CAUSAL_LM":
        raise InputError(f"lora_task_type is {given['lora_task_type']!r}; the model is a CAUSAL_LM: leave it out")


def _is_in(value: float, interval: str) -> bool:
    least, most = map(float, interval[1:-1].split(","))
    above = value >= least if interval[0] == "[" else value > least
    return above and (value <= most if interval[-1] == "]" else value < most)


def options_given(arguments) -> dict:
    """Name -> value of the options of a dataclass that differ from their default."""
    given = {}
    for field in fields(arguments):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        value = getattr(arguments, field.name)
        if value != default:
            given[field.name] = getattr(value, "value", value)
    return given


def set_released_prompt(processor, model, version: str | None) -> None:
    """Give the tokenizer a prompt of the released code, and the model its end-of-turn token. In place.

    Raises:
        InputError: the tokenizer lacks the end-of-turn token of this prompt.
    """
    from unicorn_hf.modeling.convert_unicorn_checkpoint_to_hf import TURN_ENDS, set_prompt

    if version is None:
        return
    end, tokenizer = TURN_ENDS[version], processor.tokenizer
    if end not in tokenizer.get_vocab():
        raise InputError(f"version {version!r} ends a turn with {end}, which the model's tokenizer does not have")
    set_prompt(tokenizer, model, end)
    processor.chat_template = tokenizer.chat_template


def set_tokenizer_options(processor, training_args) -> None:
    """Apply `chat_template_path`, `eos_token` and `pad_token` to the tokenizer. In place.

    The trainer would apply them only after the data are tokenized. Without a padding token, the end token is used.

    Args:
        processor: the model's `UnicornProcessor`.
        training_args: TRL's `SFTConfig`; its `chat_template_path` is then `None`.

    Raises:
        InputError: there is no such template, the tokenizer lacks a token, or it has no end token.
    """
    tokenizer = processor.tokenizer
    for name in ("eos_token", "pad_token"):
        token = getattr(training_args, name)
        if token is None:
            continue
        if token not in tokenizer.get_vocab():
            raise InputError(f"{name} is {token!r}, which is not a token of the model's tokenizer; name another")
        setattr(tokenizer, name, token)
    if tokenizer.eos_token is None:
        raise InputError(
            "The model's tokenizer has no end token, so nothing would teach the model to stop: add --eos_token"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if training_args.chat_template_path is not None:
        template = _read_chat_template(training_args.chat_template_path, tokenizer)
        processor.chat_template = tokenizer.chat_template = template
        training_args.chat_template_path = None


def _read_chat_template(source: str, tokenizer) -> str:
    """The template of a file or of another model's tokenizer, whose special tokens ours must know."""
    from transformers import AutoTokenizer

    if Path(source).is_file():
        return Path(source).read_text(encoding="utf-8")
    try:
        other = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"chat_template_path {source!r}: is neither a template file (.jinja) nor a readable tokenizer ({reason})"
        ) from error
    if other.chat_template is None:
        raise InputError(f"chat_template_path {source!r}: this tokenizer has no chat template")
    marks = [token.content for token in other.added_tokens_decoder.values() if token.content in other.chat_template]
    unknown = sorted(set(marks) - set(tokenizer.get_vocab()))
    if unknown:
        raise InputError(
            f"chat_template_path {source!r}: its template writes {', '.join(unknown)}, but the model's tokenizer lacks"
            " these tokens; use a template of the model's own family, or a file with tokens that it has"
        )
    return other.chat_template
