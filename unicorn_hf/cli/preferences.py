"""`unicorn-hf preferences`."""

from typing import Annotated

from unicorn_hf.cli import app
from unicorn_hf.cli.command import Argument, Flag, Output, command
from unicorn_hf.cli.synthesis_summary import print_preview, print_summary
from unicorn_hf.synthesis.config import PreferenceConfig


@command(
    app,
    "preferences",
    examples=[
        "unicorn-hf preferences captions -o preferences --writer transformers --model Qwen/Qwen3-8B",
        "unicorn-hf preferences captions -o preferences --writer grammar --mix object=1",
    ],
)
def preferences(
    captions: Annotated[str, Argument("A dataset with the columns id and caption.")],
    output: Output,
    config: PreferenceConfig,
    dry_run: Annotated[bool, Flag("Show ten prompts and the estimated cost of all; call no model.")] = False,
):
    """Turn captions into questions with a right and a wrong answer, for preference training."""
    from unicorn_hf.synthesis.preferences import preview_preferences, write_preferences

    if dry_run:
        print_preview(preview_preferences(captions, config))
        return
    dataset = write_preferences(captions, output, config=config)
    next_command = f"unicorn-hf publish --pretrain aligned-captions --preference {output} -o dataset-with-pairs"
    print_summary(output, dataset, "pairs", next_command)
