"""`unicorn-hf run`."""

from pathlib import Path
from typing import Annotated

import typer

from unicorn_hf.cli import app


@app.command("run", epilog="Examples:\n\nunicorn-hf run road.yaml --dry-run\n\nunicorn-hf run road.yaml")
def run(
    file: Annotated[Path, typer.Argument(help="A YAML of steps, each a command and its options (docs/commands.md).")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, and run nothing.")] = False,
):
    """Run all steps of a project from one file; finished steps are skipped."""
    from unicorn_hf.cli.road import Road
    from unicorn_hf.cli.train import find_recipe

    road = Road.read(find_recipe(file))
    print("\n".join([road.plan(), *road.missing()]))
    if not dry_run:
        raise typer.Exit(road.run())
