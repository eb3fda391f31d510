"""Whole training steps: this package's batches, the released code's, and those of TRL's own collator.

    python benchmarks/train.py                                                             # a CPU, about 3 minutes
    python benchmarks/train.py --device cuda --dtype bfloat16 --attention flash_attention_2 \\
        --hidden-size 1536 --layers 24 --vocab-size 128256 --batch-size 32 --samples 4096 --released-samples 512

There are two sets of conversations with one image each: captions of 16 to 128 tokens and a mix of 20 to 512, both
log-normal. All alternatives train all weights, with the same random weights, text and vectors, by TRL's trainer with
its fused head:

    released   the vector is copied 576 times before the projector, every sample is padded to the maximum length, and
               its vector is found by its id in a list (tokenized in advance, which the released code does not do)
    stock      TRL's `DataCollatorForVisionLanguageModeling`: random batches, tokenized and padded when they are made
    ours       tokenized in advance, batches of similar length, one token per image
    flat       the same samples, drawn at random, padding-free (FlashAttention and flex attention only)

Each alternative runs in its own process; the first step is not timed. Memory is the peak above the loaded model. MFU is
the number of operations for the real tokens (6 per parameter and token, plus attention) divided by the GPU's dense
bfloat16 peak. Prints a table with ratios, and writes JSON with `--json`.
"""

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from datasets import Dataset, Features, List, Value, disable_progress_bars
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast, PrinterCallback, TrainerCallback
from trl import SFTConfig
from unicorn_hf.modeling import UnicornConfig, UnicornForConditionalGeneration, UnicornProcessor

from unicorn_hf.training import (
    DataArguments,
    UnicornCollator,
    UnicornTrainer,
    is_padding_free,
    tokenize_conversations,
)

EMBED_DIM = 1280
RELEASED_COPIES = 576
# Shortest, median and longest answer in tokens.
SETS = {"captions": (16, 40, 128), "mix": (20, 110, 512)}
HEADER = 8  # additional tokens per sample: the question and the template's tokens
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content + ' <end>' }}{% endgeneration %}"
    "{% else %}{{ '<user> ' + message.content + ' <assistant> ' }}{% endif %}{% endfor %}"
)
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # dense bfloat16, NVIDIA's data sheets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--attention", default="sdpa", help="sdpa, eager, flash_attention_2, flex_attention")
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--samples", type=int, default=384)
    parser.add_argument("--released-samples", type=int, default=48, help="as the released way is slow")
    parser.add_argument(
        "--listed-vectors", type=int, default=20_000, help="in the list that the released code's method scans"
    )
    parser.add_argument("--workers", type=int, default=0, help="processes that make batches")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    disable_progress_bars()
    measured = {}
    for name in SETS:
        ways = ["released", "stock", "ours"] if name == "captions" else ["stock", "ours"]
        ways += ["flat"] if options.attention.startswith("fla") or options.attention == "flex_attention" else []
        measured[name] = {way: in_a_process(name, way, options) for way in ways}
    print_tables(measured, options)
    if options.json is not None:
        options.json.write_text(
            json.dumps({"options": vars(options) | {"json": None}, "sets": measured}, indent=2) + "\n"
        )


def in_a_process(name: str, way: str, options) -> dict:
    """Run in a forked process: its peak memory belongs to one alternative, and the libraries are imported only once."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(measure(name, way, options)))
    process.start()
    sender.close()
    result = receiver.recv()
    process.join()
    return result


def measure(name: str, way: str, options) -> dict:
    torch.manual_seed(0)
    copies = RELEASED_COPIES if way == "released" else 1
    processor = new_processor(copies, options)
    rows, lengths = new_rows(name, options.released_samples if way == "released" else options.samples, options)
    model = new_model(copies, processor, options)
    loaded = peak_memory(options)
    clock = Clock(options)
    with tempfile.TemporaryDirectory() as folder:
        trainer = new_trainer(way, name, model, processor, rows, folder, clock, options)
        trainer.train()
    samples = len(rows) - options.batch_size
    tokens_per_sample = np.mean(lengths) + HEADER
    waits = [entry["data_wait"] for entry in trainer.state.log_history if "data_wait" in entry]
    return {
        "samples_per_second": samples / clock.seconds,
        "tokens_per_second": samples * tokens_per_sample / clock.seconds,
        "memory_mb": (peak_memory(options) - loaded) / 2**20,
        "mfu": utilization(model, samples * tokens_per_sample / clock.seconds, tokens_per_sample, options),
        "data_wait": float(np.mean(waits)),
    }


class Clock(TrainerCallback):
    """The time from the end of the first step to the end of the last."""

    def __init__(self, options):
        self.is_gpu = options.device != "cpu"
        self.times = []

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in (1, state.max_steps):
            if self.is_gpu:
                torch.cuda.synchronize()
            self.times.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        return self.times[-1] - self.times[0]


def new_processor(copies: int, options) -> UnicornProcessor:
    """A tokenizer of one token a word."""
    specials = ["<pad>", "<unk>", "<end>", "<user>", "<assistant>", "<image>"]
    words = [f"w{number}" for number in range(options.vocab_size - len(specials))]
    model = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*specials, *words])}, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", eos_token="<end>", additional_special_tokens=specials[3:]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return UnicornProcessor(tokenizer, num_image_tokens=copies, embed_dim=EMBED_DIM)


def new_rows(name: str, num_rows: int, options) -> tuple[Dataset, np.ndarray]:
    """Conversations of one question and one answer, and the answers' lengths."""
    generator = np.random.default_rng(0)
    shortest, median, longest = SETS[name]
    lengths = generator.lognormal(np.log(median), 0.7, num_rows).clip(shortest, longest).astype(int)
    answers = [" ".join(f"w{word}" for word in generator.integers(0, options.vocab_size - 6, n)) for n in lengths]
    messages = [
        [{"role": "user", "content": "<image>\nw1 w2 w3"}, {"role": "assistant", "content": answer}]
        for answer in answers
    ]
    vectors = generator.normal(size=(num_rows, EMBED_DIM)).astype(np.float16)
    features = Features(
        {
            "id": Value("string"),
            "messages": List({"role": Value("string"), "content": Value("string")}),
            "image_embeds": List(Value("float16"), length=EMBED_DIM),
        }
    )
    rows = {"id": [f"{row:08d}" for row in range(num_rows)], "messages": messages, "image_embeds": list(vectors)}
    return Dataset.from_dict(rows, features), lengths


def new_model(copies: int, processor, options) -> UnicornForConditionalGeneration:
    hidden_size = options.hidden_size
    text_config = LlamaConfig(
        vocab_size=options.vocab_size,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 11 // 4,
        num_hidden_layers=options.layers,
        num_attention_heads=hidden_size // 64,
        num_key_value_heads=hidden_size // 64,
    )
    config = UnicornConfig.from_text_config(
        text_config,
        embed_dim=EMBED_DIM,
        image_token_id=processor.image_token_id,
        num_image_tokens=copies,
        projector_expand="copy" if copies > 1 else "split",
    )
    config._attn_implementation = options.attention
    with torch.device(options.device):
        model = UnicornForConditionalGeneration(config).to(getattr(torch, options.dtype))
    if copies > 1:
        project_copies(model.model.multi_modal_projector)
    return model


def project_copies(projector) -> None:
    """As in the released code: copy the vector, then project every copy."""

    def forward(image_embeds):
        copies = image_embeds[:, None].expand(-1, projector.num_image_tokens, -1)
        return projector.layers(copies.to(projector.layers[0].weight.dtype))

    projector.forward = forward


def new_trainer(way, name, model, processor, rows, folder, clock, options) -> UnicornTrainer:
    if way == "stock":  # TRL's collator takes a column of this name for images; a vector passes through unchanged
        data, collator = rows.rename_column("image_embeds", "image").with_format("numpy", ["image"], True), None
    else:
        data = tokenize_conversations(rows, processor).with_format("numpy")
        collator = UnicornCollator(
            processor, padding_free=is_padding_free(model, "padding-free" if way == "flat" else "padded")
        )
    if way == "released":
        collator = ReleasedCollator(processor, data, SETS[name][2] + HEADER + RELEASED_COPIES, options.listed_vectors)
        data = data.remove_columns("image_embeds")
    arguments = SFTConfig(
        folder,
        num_train_epochs=1,
        per_device_train_batch_size=options.batch_size,
        train_sampling_strategy="group_by_length" if way == "ours" else "random",
        assistant_only_loss=way == "stock",
        max_length=None,
        dataloader_num_workers=options.workers,
        use_cpu=options.device == "cpu",
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    trainer = UnicornTrainer(
        model=model,
        args=arguments,
        data_args=DataArguments(dataset=name),
        train_dataset=data,
        data_collator=collator,
        processing_class=processor,
        callbacks=[clock],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


class ReleasedCollator:
    """Pads every sample to `length`, and scans a list for its vector."""

    padding_free = False

    def __init__(self, processor, data, length: int, listed_vectors: int):
        self.pad_token_id, self.length = processor.tokenizer.pad_token_id, length
        vectors = np.zeros((listed_vectors, EMBED_DIM), np.float16)
        self.embeddings = [{"id": f"listed {row}", "embed": vector} for row, vector in enumerate(vectors)]
        # The samples' vectors are spread over the list.
        for row, place in enumerate(np.linspace(0, listed_vectors - 1, len(data)).astype(int)):
            self.embeddings[place] = {"id": data[row]["id"], "embed": data[row]["image_embeds"]}

    def __call__(self, samples: list[dict]) -> dict[str, torch.Tensor]:
        batch = {
            name: torch.full((len(samples), self.length), fill)
            for name, fill in (("input_ids", self.pad_token_id), ("labels", -100), ("attention_mask", 0))
        }
        vectors = []
        for row, sample in enumerate(samples):
            size = len(sample["input_ids"])
            batch["input_ids"][row, :size] = torch.from_numpy(sample["input_ids"])
            batch["labels"][row, :size] = torch.from_numpy(sample["labels"])
            batch["attention_mask"][row, :size] = 1
            vectors.append(next(entry["embed"] for entry in self.embeddings if entry["id"] == sample["id"]))
        return {**batch, "image_embeds": torch.from_numpy(np.stack(vectors).astype(np.float32))}


def utilization(model, tokens_per_second: float, tokens_per_sample: float, options) -> float | None:
    """Model FLOPs utilization of the real tokens; None if the device's peak is unknown."""
    name = torch.cuda.get_device_name() if options.device != "cpu" else ""
    peak = next((peak for gpu, peak in PEAK_FLOPS.items() if gpu in name), None)
    if peak is None:
        return None
    text = model.model.language_model
    parameters = sum(parameter.numel() for parameter in text.layers.parameters()) + model.lm_head.weight.numel()
    attention = 12 * options.layers * options.hidden_size * tokens_per_sample
    return (6 * parameters + attention) * tokens_per_second / peak


def peak_memory(options) -> int:
    if options.device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return torch.cuda.max_memory_allocated()


def print_tables(measured: dict, options) -> None:
    sizes = f"hidden size {options.hidden_size}, {options.layers} layers, vocabulary {options.vocab_size:,}"
    print(f"\n{options.device}, {options.dtype}, {options.attention}: {sizes}, batch {options.batch_size}\n")
    print("| data     | way      | samples/s |     × | tokens/s | peak MB |   MFU | waits for data |")
    print("|----------|----------|----------:|------:|---------:|--------:|------:|---------------:|")
    for name, ways in measured.items():
        base = next(iter(ways.values()))["samples_per_second"]
        for way, result in ways.items():
            mfu = "-" if result["mfu"] is None else f"{result['mfu']:.1%}"
            rate = result["samples_per_second"]
            print(
                f"| {name:<8} | {way:<8} | {rate:9.2f} | {rate / base:5.2f} | {result['tokens_per_second']:8.0f} |"
                f" {result['memory_mb']:7.0f} | {mfu:>5} | {result['data_wait']:14.1%} |"
            )
    print()


if __name__ == "__main__":
    main()
