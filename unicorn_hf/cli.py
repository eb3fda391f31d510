"""`unicorn-hf`: one command a step, each a thin layer over the function of the same name.

Exit status: 0 done; 2 the input cannot be used (one sentence says why).
"""

from pathlib import Path
from typing import Annotated

import typer

from unicorn_hf.errors import one_sentence_errors

app = typer.Typer(
    help="Train a vision-language model from text alone.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Output = Annotated[Path, typer.Option("--output", "-o", help="The folder to write; must not exist, or be empty.")]


def main() -> None:
    with one_sentence_errors():
        app()


@app.command()
def captions(
    seeds: Annotated[str, typer.Argument(help="A file (txt, jsonl, csv, parquet), a dataset folder, or a Hub id.")],
    output: Output,
    writer: Annotated[str, typer.Option(help="Who writes: grammar (the embedded world, no model).")] = "grammar",
    captions_per_seed: Annotated[int, typer.Option(help="Captions a seed is expanded into.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the random choices.")] = 0,
):
    """Stage 1: expand caption seeds into diverse captions."""
    from unicorn_hf.synthesis import write_captions

    dataset = write_captions(seeds, output, writer=writer, captions_per_seed=captions_per_seed, seed=seed)
    print(f"{output}: {len(dataset):,} captions")


@app.command()
def instructions(
    captions: Annotated[str, typer.Argument(help="A dataset with the columns id and caption.")],
    output: Output,
    writer: Annotated[str, typer.Option(help="Who writes: grammar (the embedded world, no model).")] = "grammar",
    seed: Annotated[int, typer.Option(help="Of the random choices.")] = 0,
):
    """Stage 2: turn captions into multi-turn conversations."""
    from unicorn_hf.synthesis import write_instructions

    dataset = write_instructions(captions, output, writer=writer, seed=seed)
    print(f"{output}: {len(dataset):,} conversations")


@app.command()
def publish(
    pretrain: Annotated[Path, typer.Option(help="A dataset folder with the columns id, caption, image_embeds.")],
    instruction: Annotated[Path, typer.Option(help="A dataset folder with the columns id, caption, task, messages.")],
    output: Output,
):
    """Write captions and instructions in the Hub's layout, for `load_dataset`."""
    from unicorn_hf.hub import publish

    print(publish(pretrain, instruction, output))


if __name__ == "__main__":
    main()
