"""`unicorn-hf embed`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from unicorn_hf.cli import app
from unicorn_hf.cli.command import Argument, Flag, command, print_next
from unicorn_hf.embedding.config import EmbedConfig


@command(
    app,
    "embed",
    examples=[
        "unicorn-hf embed captions -o caption-vectors --encoder open_clip/ViT-B-32/laion2b_s34b_b79k",
        "unicorn-hf embed photos/ -o picture-vectors --encoder transformers/openai/clip-vit-large-patch14-336",
    ],
)
def embed(
    data: Annotated[str, Argument("A dataset folder, a file, a folder of images, WebDataset tars, or a Hub id.")],
    output: Annotated[Path, Flag("The folder to write; an unfinished one is resumed.", "--output", "-o")],
    config: EmbedConfig,
):
    """Embed captions or images: adds a column of vectors to the dataset.

    Prints a JSON summary. The exit status is 3 if rows could not be embedded; failed.jsonl in the output lists them.
    """
    from unicorn_hf.embedding.job import EmbeddingJob

    job = EmbeddingJob.of(config, {}, data=data, output=str(output))
    sides = job.sides()
    jobs = list(sides.values()) or [job]
    summaries = [each.run() for each in jobs]
    if None in summaries:
        print(f"{output}: submitted; it appears when the jobs are done")
        return
    printed = dict(zip(sides, summaries, strict=True)) if sides else summaries[0]
    print(json.dumps(printed, indent=2, ensure_ascii=False))
    for each, summary in zip(jobs, summaries, strict=True):
        if summary["overflowing"] and config.overflow == "truncate":
            print(
                f"{summary['overflowing']:,} texts were longer than the encoder's context: truncated", file=sys.stderr
            )
        if summary["failed"]:
            print(f"{summary['failed']:,} rows have no vector; {each.output}/failed.jsonl says why", file=sys.stderr)
    if any(summary["failed"] for summary in summaries):
        raise typer.Exit(3)
    if sides:
        text, image = (output / side for side in ("texts", "images"))
    elif job.kind == "text":
        print_next(f"unicorn-hf embed IMAGES -o picture-vectors --encoder {config.encoder}")
        return
    else:
        text, image = ("caption-vectors" if Path("caption-vectors").is_dir() else "TEXTS"), output
    print_next(f"unicorn-hf transfer fit --text {text} --image {image} --method realign -o realign")
