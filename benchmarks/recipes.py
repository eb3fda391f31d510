"""The shipped recipes on one GPU, with models of real sizes and random weights: speed, utilization and memory.

    python benchmarks/recipes.py                                  # a GPU of 80 GB: both sizes
    python benchmarks/recipes.py --size qwen2.5-0.5b --json out.json
    python benchmarks/recipes.py --size tiny                      # the default without a GPU: only shows that it runs

Every row is one `accelerate launch` of a recipe with its own YAML, as a user would start it, for a few steps. Speed
and memory do not depend on the weights' values, so the language models have random weights in the sizes of Qwen2.5-0.5B
and Llama-3-8B, and the text consists of random words: captions of 16 to 128 tokens in stage 1, conversations of 20 to
512 in stages 2 and 3, both log-normal (as in benchmarks/train.py). The first steps are not timed; nothing is saved.

Tokens are those of the text and the images, without padding. MFU is the number of operations for them (see
`operations`), without recomputation, divided by the GPU's dense bfloat16 peak. Memory is the peak that PyTorch has
allocated and, in brackets, reserved. Prints a table, and writes JSON with `--json`.
"""

import argparse
import importlib.util
import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers.trainer
from datasets import disable_progress_bars
from train import EMBED_DIM, PEAK_FLOPS, new_processor, new_rows
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, TrainerCallback
from unicorn_hf.modeling import UnicornForConditionalGeneration

RECIPES = Path(__file__).parents[1] / "recipes"
SIZES = {
    "tiny": LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    ),
    "qwen2.5-0.5b": Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
    "llama3-8b": LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
    ),
}
SAMPLES = 2048


@dataclass(frozen=True)
class Run:
    stage: str
    config: str  # of recipes/
    what: str = ""  # in the table
    flags: tuple[str, ...] = ()
    accelerate: str = "single_gpu.yaml"
    steps: int = 12
    untimed: int = 4


FLASH, FLEX = ("--attn_implementation", "flash_attention_2"), ("--attn_implementation", "flex_attention")
COMPILE = ("--torch_compile", "true")
RUNS = {
    "tiny": [
        Run("pretrain", "pretrain/qwen2.5-0.5b.yaml", accelerate="cpu.yaml"),
        Run("finetune", "finetune/qwen2.5-0.5b-lora.yaml", accelerate="cpu.yaml"),
        Run("prefer", "prefer/qwen2.5-0.5b-lora.yaml", accelerate="cpu.yaml", steps=4, untimed=2),
    ],
    "qwen2.5-0.5b": [
        Run("pretrain", "pretrain/qwen2.5-0.5b.yaml"),
        Run("pretrain", "pretrain/qwen2.5-0.5b.yaml", "FlashAttention 2", FLASH),
        Run("finetune", "finetune/qwen2.5-0.5b.yaml"),
        Run("finetune", "finetune/qwen2.5-0.5b.yaml", "FlashAttention 2", FLASH),
        Run("finetune", "finetune/qwen2.5-0.5b.yaml", "flex attention", FLEX),
        Run("finetune", "finetune/qwen2.5-0.5b.yaml", "compiled", COMPILE),
        Run("finetune", "finetune/qwen2.5-0.5b.yaml", "no checkpointing", ("--gradient_checkpointing", "false")),
        Run("finetune", "finetune/qwen2.5-0.5b.yaml", "FSDP2, one process", (), "fsdp2.yaml"),
        Run("finetune", "finetune/qwen2.5-0.5b-lora.yaml"),
        Run("finetune", "finetune/qwen2.5-0.5b-qlora.yaml"),
        Run("prefer", "prefer/qwen2.5-0.5b.yaml"),
        Run("prefer", "prefer/qwen2.5-0.5b-lora.yaml"),
    ],
    "llama3-8b": [
        Run("pretrain", "pretrain/llama3-8b.yaml"),
        Run("pretrain", "pretrain/llama3-8b.yaml", "FlashAttention 2", FLASH),
        Run("pretrain", "released/pretrain.yaml", "576 image tokens", steps=5, untimed=2),
        Run("finetune", "finetune/llama3-8b-lora.yaml"),
        Run("finetune", "finetune/llama3-8b-lora.yaml", "FlashAttention 2", FLASH),
        Run("finetune", "finetune/llama3-8b-qlora.yaml"),
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = ["qwen2.5-0.5b", "llama3-8b"] if device == "cuda" else ["tiny"]
    parser.add_argument("--size", nargs="+", choices=list(SIZES), default=sizes)
    parser.add_argument("--only", default="", help="run the rows whose description contains this")
    parser.add_argument("--device", choices=["cpu", "cuda"], default=device)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    disable_progress_bars()
    measured = []
    for size in options.size:
        with tempfile.TemporaryDirectory() as folder:
            make_inputs(size, Path(folder), options)
            for run in RUNS[size]:
                if options.only in description(size, run):
                    measured.append({"run": description(size, run), **launch(size, run, Path(folder), options)})
                    print(row(measured[-1]), flush=True)
    device = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"\n{device}, torch {torch.__version__}, transformers {transformers.__version__}\n")
    print("| recipe | samples/s | tokens/s | MFU | GB |\n| --- | ---: | ---: | ---: | ---: |")
    print("\n".join(row(result) for result in measured))
    if options.json is not None:
        options.json.write_text(json.dumps({"device": device, "runs": measured}, indent=2) + "\n")


def description(size: str, run: Run) -> str:
    return f"{size}: {run.stage}, `{run.config}`" + (f", {run.what}" if run.what else "")


def make_inputs(size: str, folder: Path, options) -> None:
    """A language model, a model of stage 1, and the dataset with its three configurations."""
    config = SIZES[size]
    words = SimpleNamespace(vocab_size=config.vocab_size)
    processor = new_processor(1, words)
    with torch.device(options.device):
        language_model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    language_model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    language_model.save_pretrained(folder / "language-model")
    processor.tokenizer.save_pretrained(folder / "language-model")
    del language_model
    model = UnicornForConditionalGeneration.from_text_pretrained(
        folder / "language-model", tokenizer=processor.tokenizer, embed_dim=EMBED_DIM, dtype=torch.bfloat16
    )
    model.save_pretrained(folder / "stage-1")
    processor.save_pretrained(folder / "stage-1")

    # The folders' names are those of the configurations that the recipes' YAML files name.
    for name in ("unicorn-1.2m", "unicorn-471k-instruction", "unicorn-preference"):
        rows, _ = new_rows("captions" if name == "unicorn-1.2m" else "mix", SAMPLES, words)
        answers = [messages[-1]["content"] for messages in rows["messages"]]
        if name == "unicorn-1.2m":
            rows = rows.add_column("caption", answers).remove_columns("messages")
        if name == "unicorn-preference":
            prompts = [messages[:1] for messages in rows["messages"]]
            chosen = [messages[1:] for messages in rows["messages"]]
            rejected = chosen[1:] + chosen[:1]
            rows = rows.remove_columns("messages")
            for column, values in (("prompt", prompts), ("chosen", chosen), ("rejected", rejected)):
                rows = rows.add_column(column, values)
        (folder / "dataset" / name).mkdir(parents=True)
        rows.to_parquet(folder / "dataset" / name / "rows.parquet")


def launch(size: str, run: Run, folder: Path, options) -> dict:
    """What one recipe measured, or why it failed."""
    if "flash_attention_2" in run.flags and importlib.util.find_spec("flash_attn") is None:
        return {"error": "flash-attn is not installed"}
    source = "language-model" if run.stage == "pretrain" else "stage-1"
    result = folder / "result.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1"]
    command += ["--config_file", str(RECIPES / "accelerate" / run.accelerate), __file__, "--timed", str(result)]
    command += [str(run.untimed), str(RECIPES / f"{run.stage}.py"), "--config", str(RECIPES / run.config)]
    command += ["--model_name_or_path", str(folder / source), "--dataset", str(folder / "dataset")]
    command += ["--output_dir", str(folder / "output"), "--max_steps", str(run.steps)]
    command += ["--save_strategy", "no", "--report_to", "none", "--dataloader_num_workers", "4", *run.flags]
    if options.device == "cpu":
        command += ["--use_cpu", "true", "--bf16", "false"]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if not result.exists():
        print(finished.stderr[-3000:], file=sys.stderr)
        told = [line for line in finished.stderr.splitlines() if line.startswith(("unicorn-hf:", "torch.OutOf"))]
        return {"error": (told or finished.stderr.strip().splitlines() or ["no message"])[0][:300]}
    return json.loads(result.read_text())


class Clock(TrainerCallback):
    """Writes the time from the end of the last untimed step to the end of the last step, and ends the process."""

    def __init__(self, result: Path, untimed: int):
        self.result, self.untimed = result, untimed

    def on_train_begin(self, args, state, control, **kwargs):
        args.include_num_input_tokens_seen = "non_padding"  # TRL's parser takes only true and false here

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step not in (self.untimed, state.max_steps):
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now, tokens = time.perf_counter(), state.num_input_tokens_seen
        if state.global_step == self.untimed:
            self.start, self.tokens = now, tokens
            return
        steps = state.max_steps - self.untimed
        samples = steps * args.per_device_train_batch_size * args.gradient_accumulation_steps
        tokens_per_second = int(tokens - self.tokens) / (now - self.start)
        measured = {
            "samples_per_second": samples / (now - self.start),
            "tokens_per_second": tokens_per_second,
            "mfu": None,
            "allocated_gb": None,
            "reserved_gb": None,
        }
        if torch.cuda.is_available():
            peak = next((peak for name, peak in PEAK_FLOPS.items() if name in torch.cuda.get_device_name()), None)
            measured["mfu"] = None if peak is None else operations(model) * tokens_per_second / peak
            measured["allocated_gb"] = torch.cuda.max_memory_allocated() / 1e9
            measured["reserved_gb"] = torch.cuda.max_memory_reserved() / 1e9
        self.result.write_text(json.dumps(measured))
        os._exit(0)  # saving the model takes longer than the measurement


def operations(model) -> float:
    """Per token: 2 per weight of the layers and the head, for each of the forward pass, the gradient of the activations
    and, where these weights are trained, their own gradient."""
    text = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = text.config.get_text_config()
    head_size = config.hidden_size // config.num_attention_heads
    layer = config.hidden_size * head_size * 2 * (config.num_attention_heads + config.num_key_value_heads)
    layer += 3 * config.hidden_size * config.intermediate_size
    weights = config.num_hidden_layers * layer + config.hidden_size * config.vocab_size
    trained = any(
        parameter.requires_grad and "language_model" in name and "lora_" not in name
        for name, parameter in model.named_parameters()
    )
    return 2 * (3 if trained else 2) * weights


def row(result: dict) -> str:
    if "error" in result:
        return f"| {result['run']} | {result['error']} | | | |"
    mfu = "" if result["mfu"] is None else f"{result['mfu']:.0%}"
    memory = "" if result["allocated_gb"] is None else f"{result['allocated_gb']:.1f} ({result['reserved_gb']:.1f})"
    rates = f"{result['samples_per_second']:.1f} | {result['tokens_per_second']:,.0f}"
    return f"| {result['run']} | {rates} | {mfu} | {memory} |"


def timed(result: str, untimed: str, recipe: str, *arguments: str) -> None:
    """Run a recipe as a script, with a clock among its trainer's callbacks."""
    transformers.trainer.DEFAULT_CALLBACKS.append(Clock(Path(result), int(untimed)))
    sys.argv = [recipe, *arguments]
    runpy.run_path(recipe, run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--timed"]:
        timed(*sys.argv[2:])
    else:
        main()
