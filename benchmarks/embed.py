"""Captions and images per second: the embed step and the usual alternatives, with the same tower in one run.

    python benchmarks/embed.py                                   # a CPU
    python benchmarks/embed.py --device cuda --dtype bfloat16 --captions 200000 --images 20000 [--compile]

The tower is CLIP ViT-B/32 at its real size, with random weights: speed does not depend on their values. Captions have 8
to 77 tokens, 30 on average. Each alternative runs `--repeats` times, in turn, and its best time is used; on a busy
machine, compare the CPU times. Prints a table, and writes JSON with `--json`.
"""

import argparse
import dataclasses
import io
import json
import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

from unicorn_hf import load_encoder
from unicorn_hf.embedding import EmbeddingJob
from unicorn_hf.embedding.batches import TextBatches, decode_images, image_batch_size

SIZES = {  # hidden size, layers, heads of the text and of the image tower
    "base": ((512, 12, 8), (768, 12, 12)),
    "tiny": ((128, 2, 4), (128, 2, 4)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16", help="the half precision to measure beside float32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--size", default="base", choices=SIZES)
    parser.add_argument("--captions", type=int, default=1024)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32, help="of the other ways")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), options)
    threads = torch.get_num_threads()
    print(f"\n{options.device}, {threads} threads; {options.captions} captions, {options.images} images\n")
    print(f"| {'way':<58} | a second |     × | CPU ms each | least cosine |")
    print(f"|{'-' * 60}|---------:|------:|------------:|-------------:|")
    for row in rows:
        numbers = f"{row['rate']:8,.1f} | {row['times']:5.2f} | {row['cpu']:11.2f} | {row['cosine']:12.6f}"
        print(f"| {row['way']:<58} | {numbers} |")
    print()
    for dtype in ("float32", options.dtype):
        for kind in ("text", "image"):
            step, alone = (
                next(row for row in rows if row["dtype"] == dtype and row["kind"] == f"{kind} {part}")
                for part in ("step", "forward")
            )
            share, cpu = step["rate"] / alone["rate"], alone["cpu"] / step["cpu"]
            print(f"{dtype}: the {kind} step has {share:.0%} of the forward pass's speed, {cpu:.0%} in CPU time")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


def measure(folder: Path, options) -> list[dict]:
    save_clip(folder / "clip", *SIZES[options.size])
    captions, images = make_captions(options.captions), make_images(options.images)
    datasets.Dataset.from_dict({"caption": captions}).to_parquet(folder / "text.parquet")
    pictures = datasets.Dataset.from_dict({"image": images}).cast_column("image", datasets.Image())
    pictures.to_parquet(folder / "image.parquet")
    loaded = {
        dtype: load_encoder(folder / "clip", device=options.device, dtype=dtype, compile=options.compile)
        for dtype in ("float32", options.dtype)
    }
    size = options.batch_size
    text_ways = [
        Way(f"padded to 77, in order, batches of {size}", naive(folder, captions, options)),
        Way(
            f"transformers pipeline('feature-extraction'), batches of {size}",
            feature_extraction(folder, captions, options),
        ),
        Way(f"sentence-transformers encode, batches of {size}", sentence_transformers(folder, captions, options)),
    ]
    image_ways = []
    for dtype, encoder in loaded.items():
        text_ways += [
            Way(f"unicorn-hf, forward pass alone, {dtype}", forward_text(encoder, captions), "text forward", dtype),
            Way(f"unicorn-hf, encode_text, {dtype}", lambda encoder=encoder: encoder.encode_text(captions)),
            Way(f"unicorn-hf, embed, file to folder, {dtype}", step(folder, "text", encoder), "text step", dtype),
        ]
        image_ways += [
            Way(f"unicorn-hf, image forward alone, {dtype}", forward_images(encoder, images), "image forward", dtype),
            Way(f"unicorn-hf, embed images, {dtype}", step(folder, "image", encoder), "image step", dtype),
        ]
    return time_in_turn(text_ways, len(captions), options) + time_in_turn(image_ways, len(images), options)


@dataclasses.dataclass
class Way:
    name: str
    run: Callable[[], np.ndarray]
    kind: str = ""
    dtype: str = "float32"
    best: float = float("inf")
    best_cpu: float = float("inf")
    vectors: np.ndarray | None = None


def time_in_turn(ways: list[Way], count: int, options) -> list[dict]:
    """The best time of each alternative; `times` and `cosine` (the smallest of all rows) compare it with the first."""
    for _ in range(options.repeats):
        for way in ways:
            started, started_cpu = time.perf_counter(), sum(os.times()[:4])
            way.vectors = way.run()
            way.best = min(way.best, time.perf_counter() - started)
            way.best_cpu = min(way.best_cpu, sum(os.times()[:4]) - started_cpu)  # with the worker processes
            print(f"{way.name}: {count / way.best:,.1f} a second", flush=True)
    first = ways[0]
    return [
        {
            "way": way.name,
            "kind": way.kind,
            "dtype": way.dtype,
            "rate": count / way.best,
            "times": first.best / way.best,
            "cpu": 1000 * way.best_cpu / count,
            "cosine": float((way.vectors * first.vectors).sum(1).min()),
        }
        for way in ways
    ]


def naive(folder: Path, captions: list[str], options):
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder / "clip").to(options.device).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "clip")

    @torch.inference_mode()
    def run():
        vectors = []
        for start in range(0, len(captions), options.batch_size):
            batch = captions[start : start + options.batch_size]
            inputs = tokenizer(batch, padding="max_length", truncation=True, return_tensors="pt").to(options.device)
            vectors.append(unit(model.get_text_features(**inputs).pooler_output).cpu().numpy())
        return np.concatenate(vectors)

    return run


def feature_extraction(folder: Path, captions: list[str], options):
    """The pipeline returns each token's last state as lists; the vector is the projected state of the last token."""
    from transformers import AutoTokenizer, CLIPTextModelWithProjection, pipeline

    tokenizer = AutoTokenizer.from_pretrained(folder / "clip")
    model = CLIPTextModelWithProjection.from_pretrained(folder / "clip").to(options.device).eval()
    extract = pipeline(
        "feature-extraction",
        model=model.text_model,
        tokenizer=tokenizer,
        device=options.device,
        batch_size=options.batch_size,
        tokenize_kwargs={"padding": True, "truncation": True},
        return_tensors=True,
    )

    @torch.inference_mode()
    def run():
        lengths = [min(len(ids), 77) for ids in tokenizer(captions).input_ids]
        states = [state[0, length - 1] for state, length in zip(extract(captions), lengths, strict=True)]
        return unit(model.text_projection(torch.stack(states).to(options.device))).cpu().numpy()

    return run


def sentence_transformers(folder: Path, captions: list[str], options):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder / "clip"), device=options.device)
    return lambda: model.encode(
        captions, batch_size=options.batch_size, normalize_embeddings=True, show_progress_bar=False
    )


def forward_text(encoder, captions):
    batches = TextBatches(encoder.tokenizer, captions, device=encoder.device)
    prepared = [(places, on(inputs, encoder.device)) for places, inputs in batches]

    def run():
        vectors = torch.empty(batches.num_windows, encoder.embed_dim, device=encoder.device)
        for places, inputs in prepared:
            vectors[places] = encoder.forward(encoder.text_tower, inputs)
        return vectors.cpu().numpy()

    return run


def forward_images(encoder, images):
    size = image_batch_size("auto", encoder.device)
    batches = [images[start : start + size] for start in range(0, len(images), size)]
    prepared = [on(decode_images(batch, encoder.transform)[0], encoder.device) for batch in batches]
    return lambda: torch.cat([encoder.forward(encoder.image_tower, inputs) for inputs in prepared]).cpu().numpy()


def step(folder: Path, kind: str, encoder):
    """From a Parquet file to a dataset folder, as in `unicorn-hf embed`."""

    def run():
        with tempfile.TemporaryDirectory(dir=folder) as place:
            EmbeddingJob(data=folder / f"{kind}.parquet", output=f"{place}/out", encoder=encoder).run()
            table = pq.read_table(f"{place}/out/data", columns=[f"{kind}_embeds"])
            flat = table.column(0).combine_chunks().flatten().to_numpy(zero_copy_only=False)
            return flat.reshape(table.num_rows, -1).astype(np.float32)

    return run


def on(inputs, device):
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def unit(vectors: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(vectors.float(), dim=-1)


def save_clip(folder: Path, text_size, image_size) -> None:
    """CLIP with its own tokenizer, whose merges open_clip ships."""
    import open_clip
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    bpe = open_clip.SimpleTokenizer()
    vocab = {token.replace("<start_of_text>", "<|startoftext|>"): index for token, index in bpe.encoder.items()}
    vocab = {token.replace("<end_of_text>", "<|endoftext|>"): index for token, index in vocab.items()}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=list(bpe.bpe_ranks), model_max_length=77)
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    text, image = (
        dict(zip(sizes, (hidden, 4 * hidden, layers, heads), strict=True))
        for hidden, layers, heads in (text_size, image_size)
    )
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config={**image, "patch_size": 32})).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)


def make_captions(count: int) -> list[str]:
    """8 to 77 tokens each, 30 on average, of common words."""
    chooser = random.Random(0)
    words = ["a", "the", "small", "red", "dog", "cat", "house", "tree", "on", "in", "with", "of", "two", "old", "man"]
    lengths = (min(75, max(6, round(chooser.gammavariate(4, 7)))) for _ in range(count))
    return [" ".join(chooser.choice(words) for _ in range(length)) for length in lengths]


def make_images(count: int) -> list[dict]:
    """JPEG files of 400 × 300 pixels."""
    chooser = np.random.default_rng(0)
    files = []
    for _ in range(count):
        coarse = Image.fromarray(chooser.integers(0, 255, (12, 16, 3), np.uint8))
        buffer = io.BytesIO()
        coarse.resize((400, 300), Image.Resampling.BICUBIC).save(buffer, "JPEG")
        files.append({"bytes": buffer.getvalue(), "path": None})
    return files


if __name__ == "__main__":
    main()
