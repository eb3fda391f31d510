"""The card of a trained model: the training data, the settings, and the course of the loss."""

from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import ModelCard
from transformers.trainer_pt_utils import get_model_param_count

# The settings needed to repeat a run, among the hundreds of TRL and transformers.
SETTINGS = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "optim",
    "weight_decay",
    "max_grad_norm",
    "max_length",
    "bf16",
    "fp16",
    "seed",
)
PREFERENCE_SETTINGS = ("beta", "loss_type", "loss_weights")
LIBRARIES = ("unicorn-hf", "trl", "transformers", "peft", "accelerate", "datasets", "torch")
NUM_LOSSES = 20


def trained_model_card(model, args, data_args, state, num_processes: int) -> ModelCard:
    """The model's own card plus a section about its training.

    Args:
        model: a `UnicornForConditionalGeneration`, or a PEFT model over one.
        args, data_args: the recipe's `SFTConfig` or `DPOConfig`, and `DataArguments`.
        state: the trainer's `TrainerState`, with the losses so far.
        num_processes: the number of training processes.
    """
    from trl import DPOConfig

    from unicorn_hf.modeling.modeling_unicorn import model_card

    is_preference = isinstance(args, DPOConfig)
    card = ModelCard(model_card(model.config))
    adapter = getattr(model, "peft_config", {}).get("default")
    if adapter is not None:
        card.data.library_name = "peft"
        card.data.base_model = _hub_id(adapter.base_model_name_or_path)
    card.data.tags = sorted({*(card.data.tags or []), "trl", "dpo" if is_preference else "sft"})
    card.data.datasets = [data_args.dataset] if _hub_id(data_args.dataset) else None

    trainable, total = (get_model_param_count(model, trainable_only=only) for only in (True, False))
    settings = {
        "trained": f"{trainable:,} of {total:,} parameters",
        **({"adapter": f"{adapter.peft_type.value}, r {adapter.r}, alpha {adapter.lora_alpha}"} if adapter else {}),
        **{field.name: _without_folder(getattr(data_args, field.name)) for field in fields(data_args)},
        "steps": f"{state.global_step:,} of {state.max_steps:,}",
        "processes": num_processes,
        **{name: getattr(args, name) for name in (*SETTINGS, *(PREFERENCE_SETTINGS if is_preference else ()))},
    }
    rows = [f"| {name} | {_cell(value)} |" for name, value in settings.items() if value is not None]
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    table = "\n".join(rows)
    card.text += f"\n## Training\n\n| | |\n| --- | --- |\n{table}\n\nWith {libraries}.\n{_losses(state.log_history)}"
    return card


def _losses(log_history: list[dict]) -> str:
    logged = [(entry["step"], entry["loss"]) for entry in log_history if "loss" in entry]
    if not logged:
        return ""
    stride = -(-len(logged) // NUM_LOSSES)
    kept = logged[::stride] if logged[-1] in logged[::stride] else [*logged[::stride], logged[-1]]
    rows = "\n".join(f"| {step} | {loss:.4f} |" for step, loss in kept)
    return f"\n| step | loss |\n| ---: | ---: |\n{rows}\n"


def _cell(value) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(getattr(value, "value", value))


def _without_folder(value):
    if isinstance(value, list):
        return ", ".join(map(_without_folder, value))
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _hub_id(name: str | None) -> str | None:
    return name if name and name.count("/") == 1 and not Path(name).exists() else None
