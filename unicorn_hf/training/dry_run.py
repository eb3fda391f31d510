"""Report what a run would do, without training: `--max_steps 0`."""

import itertools
import math

import numpy as np
import torch
from transformers.trainer_pt_utils import get_model_param_count

STREAM_SAMPLES = 1000
GB = 1e9


def dry_run_report(trainer) -> str:
    """The data, the steps and the memory of a run, as text; makes one batch, and trains nothing.

    Making that batch may raise errors; data, columns and encoder were checked before.
    """
    args, data = trainer.args, trainer.train_dataset
    streamed = not hasattr(data, "__len__")
    rows = itertools.islice(data, STREAM_SAMPLES) if streamed else ()
    lengths = np.array([row["length"] for row in rows] if streamed else data["length"][:])
    batch = next(iter(trainer.get_train_dataloader()))
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in batch.items() if torch.is_tensor(value))
    is_pairs = "completion_mask" in batch
    learnt = (batch["completion_mask"] == 1 if is_pairs else batch["labels"] != -100).float().mean()

    devices = trainer.accelerator.num_processes
    samples_per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * devices
    steps = "as many as --max_steps says" if streamed else f"{math.ceil(len(data) / samples_per_step):,}"
    quantiles = ", ".join(f"{name} {np.quantile(lengths, q):,.0f}" for name, q in QUANTILES.items())
    trainable, total = (get_model_param_count(trainer.model, trainable_only=only) for only in (True, False))

    batch_tokens = args.per_device_train_batch_size * int(lengths.max()) * (2 if is_pairs else 1)
    memory = estimate_memory(trainer, batch_tokens)
    lines = [f"  {name:12} {size / GB:>9.4g} GB" for name, size in memory.items()]
    lines.append(f"  {'in all':12} {sum(memory.values()) / GB:>9.4g} GB, and about 1 GB for the GPU's libraries")
    if torch.cuda.is_available():
        lines.append(f"  {'this GPU':12} {torch.cuda.mem_get_info()[1] / GB:>9.4g} GB")
    seen = f"the first {len(lengths):,} samples of a stream" if streamed else f"{len(data):,} samples"
    return "\n".join(
        [
            f"data: {seen} that fit max_length {args.max_length} (truncated and dropped samples are counted above)",
            f"tokens per sample: {quantiles}; {lengths.sum():,} in all",
            f"first batch: {shapes}; {learnt:.0%} of its tokens are in the loss",
            f"steps: {steps} per epoch, of {args.per_device_train_batch_size} samples x"
            f" {args.gradient_accumulation_steps} accumulated x {devices} processes = {samples_per_step}",
            f"parameters: {trainable:,} of {total:,} are trained",
            f"memory of each device, estimated for the longest batch ({batch_tokens:,} tokens):",
            *lines,
            "nothing was trained or written",
        ]
    )


QUANTILES = {"shortest": 0, "median": 0.5, "95%": 0.95, "99%": 0.99, "longest": 1}


def estimate_memory(trainer, batch_tokens: int) -> dict[str, float]:
    """Bytes on each device: `weights`, `gradients`, `optimizer` (AdamW's states), and `activations` of a batch.

    Logits come in chunks and are not counted (those of pairs do so in TRL 1.16). Where a second model is the reference,
    `reference` has its weights.
    """
    args, model = trainer.args, trainer.model
    parameters = list(model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    weights, frozen = sum(map(_num_bytes, parameters)), sum(map(_num_bytes, set(parameters) - set(trained)))
    numel = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in trained)
    stage = trainer.accelerator.state.deepspeed_plugin.zero_stage if trainer.is_deepspeed_enabled else 0
    if trainer.is_deepspeed_enabled and args.bf16:  # weights and gradients in bfloat16, plus three float32 copies
        weights, gradients, states = frozen + 2 * numel, 2 * numel, 12 * numel
    elif trainer.is_fsdp_enabled and (args.bf16 or args.fp16):  # trained weights are kept in float32
        weights, gradients, states = frozen + 4 * numel, 4 * numel, 8 * numel
    else:
        gradients = weights - frozen
        states = 2 * numel if "8bit" in args.optim else 2 * gradients
    devices = trainer.accelerator.num_processes
    shards = devices if trainer.is_fsdp_enabled or stage == 3 else 1
    reference = getattr(trainer, "ref_model", None)
    return {
        "weights": weights / shards,
        **({"reference": sum(map(_num_bytes, reference.parameters())) / shards} if reference is not None else {}),
        "gradients": gradients / (devices if trainer.is_fsdp_enabled or stage >= 2 else 1),
        "optimizer": states / (devices if trainer.is_fsdp_enabled or stage >= 1 else 1),
        "activations": activation_bytes(args, model.config.get_text_config(), batch_tokens),
    }


def activation_bytes(args, config, batch_tokens: int) -> float:
    """Bytes that the language model of `config` keeps for the backward pass of `batch_tokens` tokens.

    It counts the tensors of a Llama-like layer with attention that does not keep its scores (SDPA, FlashAttention).
    With activation checkpointing, it counts each layer's input and the inside of one layer (arXiv 2205.05198, sections
    4 and 5, adapted to gated layers).
    """
    size = 2 if args.bf16 or args.fp16 else 4
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = (config.num_attention_heads + (config.num_key_value_heads or config.num_attention_heads)) * head_dim
    norm = (4 + size) * config.hidden_size  # its float32 input, and its output
    # Two norms; queries, keys, values and the output of attention; a gated MLP.
    layer = 2 * norm + size * (2 * heads + 4 * config.intermediate_size)
    if args.gradient_checkpointing:
        kept = config.num_hidden_layers * size * config.hidden_size + layer
    else:
        kept = config.num_hidden_layers * layer
    return batch_tokens * (kept + norm)


def _num_bytes(parameter) -> int:
    return getattr(parameter, "ds_numel", parameter.numel()) * parameter.element_size()
