"""`unicorn-hf captions`."""

from pathlib import Path
from typing import Annotated

from unicorn_hf.cli import app
from unicorn_hf.cli.command import Argument, Flag, Output, command
from unicorn_hf.cli.synthesis_summary import print_preview, print_summary
from unicorn_hf.synthesis.config import CaptionConfig


@command(
    app,
    "captions",
    examples=[
        "unicorn-hf captions seeds.txt -o captions --writer chat --model Qwen/Qwen3-8B --base-url http://127.0.0.1:8000/v1",
        "unicorn-hf captions birds.txt tools.txt -o captions --writer grammar --captions-per-seed 6",
    ],
)
def captions(
    seeds: Annotated[
        list[str],
        Argument("A file (txt, jsonl, csv, parquet), several files, a dataset folder, or a Hub id."),
    ],
    output: Output,
    config: CaptionConfig,
    dry_run: Annotated[bool, Flag("Show ten prompts and the estimated cost of all; call no model.")] = False,
):
    """Expand caption seeds into diverse captions."""
    from unicorn_hf.synthesis.captions import preview_captions, write_captions

    source = seeds[0] if len(seeds) == 1 else [Path(name) for name in seeds]
    if dry_run:
        print_preview(preview_captions(source, config))
        return
    dataset = write_captions(source, output, config=config)
    model = "" if config.writer == "grammar" else " --model …"
    next_command = f"unicorn-hf instructions {output} -o conversations --writer {config.writer}{model}"
    print_summary(output, dataset, "captions", next_command)
