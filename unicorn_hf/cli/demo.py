"""`unicorn-hf demo`."""

from pathlib import Path
from typing import Annotated

from unicorn_hf.cli import app
from unicorn_hf.cli.command import Flag, command


@command(app, "demo", examples=["unicorn-hf demo", "unicorn-hf demo --fast -o quick --seed 1"])
def demo(
    output: Annotated[Path, Flag("The folder for all outputs.", "--output", "-o")] = Path("demo-output"),
    fast: Annotated[bool, Flag("The same steps on a fraction of the data; low accuracy.")] = False,
    seed: Annotated[int, Flag("Seed of the world, the writers and the training.", at_least=0, at_most=10**6)] = 0,
):
    """Run all steps offline on a CPU, from text to a model that answers about images. A stopped run is resumed."""
    from unicorn_hf.sandbox.demo import demo

    demo(output, fast=fast, seed=seed)
