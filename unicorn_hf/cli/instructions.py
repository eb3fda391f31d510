"""`unicorn-hf instructions`."""

from typing import Annotated

from unicorn_hf.cli import app
from unicorn_hf.cli.command import Argument, Flag, Output, command
from unicorn_hf.cli.synthesis_summary import print_preview, print_summary
from unicorn_hf.synthesis.config import InstructionConfig


@command(
    app,
    "instructions",
    examples=[
        "unicorn-hf instructions captions -o conversations --writer transformers --model Qwen/Qwen3-8B",
        "unicorn-hf instructions captions -o conversations --writer grammar --mix complex_reasoning=1",
    ],
)
def instructions(
    captions: Annotated[str, Argument("A dataset with the columns id and caption.")],
    output: Output,
    config: InstructionConfig,
    dry_run: Annotated[bool, Flag("Show ten prompts and the estimated cost of all; call no model.")] = False,
):
    """Turn captions into multi-turn conversations."""
    from unicorn_hf.synthesis.instructions import preview_instructions, write_instructions

    if dry_run:
        print_preview(preview_instructions(captions, config))
        return
    dataset = write_instructions(captions, output, config=config)
    encoder = "sandbox" if config.writer == "grammar" else "…"  # of the same toy world
    next_command = f"unicorn-hf embed {captions} -o caption-vectors --encoder {encoder}"
    print_summary(output, dataset, "conversations", next_command)
