"""A training step and `generate`, with one to sixteen tokens per image and with the released code's 576.

    python benchmarks/model_step.py                                                        # a CPU
    python benchmarks/model_step.py --device cuda --dtype bfloat16 --attention flash_attention_2 \\
        --hidden-size 4096 --layers 32 --batch-size 16

The released code copies an image's vector 576 times and projects every copy; this package projects it once, to k
tokens. All use the same random weights, text and vectors; speed does not depend on their values. Each runs in its own
process, in turn, `--rounds` times, and its best time is used. Memory is the peak above the loaded model. Prints a table
with ratios, and writes JSON with `--json`.
"""

import argparse
import json
import multiprocessing
import resource
import time
from pathlib import Path

import torch
from transformers import LlamaConfig
from unicorn_hf.modeling import UnicornConfig, UnicornForConditionalGeneration

WAYS = {"released: 576 copies, then the projector": 576, "k = 1": 1, "k = 4": 4, "k = 16": 16}
TASKS = {"projector": "train the projector", "everything": "train everything", "generate": "generate"}
VOCAB_SIZE = 32000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--attention", default="sdpa", help="sdpa, eager, flash_attention_2, flex_attention")
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--text-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--steps", type=int, default=2, help="timed steps of each task, after one untimed step")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    measured = {way: [] for way in WAYS}
    for _ in range(options.rounds):
        for way in WAYS:
            measured[way].append(in_a_process(way, options))
    best = {
        way: {
            task: {
                "samples_per_second": max(result[task]["samples_per_second"] for result in results),
                "memory_mb": min(result[task]["memory_mb"] for result in results),
            }
            for task in TASKS
        }
        for way, results in measured.items()
    }
    print_table(best, options)
    if options.json is not None:
        options.json.write_text(json.dumps({"options": vars(options) | {"json": None}, "ways": best}, indent=2) + "\n")


def in_a_process(way: str, options) -> dict:
    """Run in a forked process: its peak memory belongs to one alternative, and transformers is imported only once."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(measure(way, options)))
    process.start()
    sender.close()
    result = receiver.recv()
    process.join()
    return result


def measure(way: str, options) -> dict:
    torch.manual_seed(0)
    k = WAYS[way]
    model = new_model(k, options)
    if way.startswith("released"):
        project_copies(model.model.multi_modal_projector)
    text = torch.randint(5, VOCAB_SIZE, (options.batch_size, options.text_tokens), device=options.device)
    images = torch.full((options.batch_size, k), model.config.image_token_id, device=options.device)
    input_ids = torch.cat([images, text], dim=1)
    image_embeds = torch.randn(options.batch_size, model.config.embed_dim, device=options.device)
    batch = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "image_embeds": image_embeds}

    def train():
        model(**batch, labels=input_ids, use_cache=False).loss.backward()

    def generate():
        tokens = options.new_tokens
        model.generate(**batch, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0)

    loaded = peak_memory(options)
    # In the order of their memory: a process's peak never falls.
    results = {"generate": timed(generate, loaded, options)}
    model.train().requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(True)
    results["projector"] = timed(train, loaded, options)
    model.requires_grad_(True)
    results["everything"] = timed(train, loaded, options)
    return results


def new_model(k: int, options) -> UnicornForConditionalGeneration:
    hidden_size = options.hidden_size
    text_config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 11 // 4,
        num_hidden_layers=options.layers,
        num_attention_heads=hidden_size // 64,
        num_key_value_heads=hidden_size // 64,
    )
    config = UnicornConfig.from_text_config(
        text_config, embed_dim=1280, num_image_tokens=k, projector_expand="copy" if k == 576 else "split"
    )
    config._attn_implementation = options.attention
    with torch.device(options.device):
        return UnicornForConditionalGeneration(config).to(getattr(torch, options.dtype)).eval()


def project_copies(projector) -> None:
    """As in the released code: copy the vector, then project every copy."""

    def forward(image_embeds):
        copies = image_embeds[:, None].expand(-1, projector.num_image_tokens, -1)
        return projector.layers(copies.to(projector.layers[0].weight.dtype))

    projector.forward = forward


def timed(task, loaded: int, options) -> dict:
    times = []
    for _ in range(1 + options.steps):
        start = time.perf_counter()
        task()
        if options.device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return {
        "samples_per_second": options.batch_size / min(times[1:]),
        "memory_mb": (peak_memory(options) - loaded) / 2**20,
    }


def peak_memory(options) -> int:
    if options.device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return torch.cuda.max_memory_allocated()


def print_table(best: dict, options) -> None:
    sizes = f"hidden size {options.hidden_size}, {options.layers} layers, batch {options.batch_size}"
    print(f"\n{options.device}, {options.dtype}, {options.attention}: {sizes}, {options.text_tokens} text tokens\n")
    heads = "".join(f" {TASKS[task]:>20} |     × |   MB |" for task in TASKS)
    print(f"| {'samples a second':<40} |{heads}")
    print(f"|{'-' * 42}|{('-' * 21 + ':|------:|-----:|') * 3}")
    released = next(iter(best.values()))
    for way, tasks in best.items():
        cells = ""
        for task in TASKS:
            rate, memory = tasks[task]["samples_per_second"], tasks[task]["memory_mb"]
            cells += f" {rate:20.2f} | {rate / released[task]['samples_per_second']:5.1f} | {memory:4.0f} |"
        print(f"| {way:<40} |{cells}")
    print()


if __name__ == "__main__":
    main()
