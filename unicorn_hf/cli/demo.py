"""`unicorn-hf demo`."""

from pathlib import Path
from typing import Annotated

from unicorn_hf.cli import app
from unicorn_hf.cli.command import Flag, command


@command(app, "demo", examples=["unicorn-hf demo", "unicorn-hf demo --fast -o quick --seed 1"])
def demo(
    output: Annotated[Path, Flag("The folder that keeps everything.", "--output", "-o")] = Path("demo-output"),
    fast: Annotated[bool, Flag("The same road over a fraction of the data; no claim of accuracy.")] = False,
    seed: Annotated[int, Flag("Of the world, the writers and the training.", at_least=0, at_most=10**6)] = 0,
):
    """The whole path, offline, on a CPU: text in, a model that answers about images out. Goes on where it stopped."""
    from unicorn_hf.sandbox.demo import demo

    demo(output, fast=fast, seed=seed)
