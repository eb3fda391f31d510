"""`unicorn-hf report captions`."""

from pathlib import Path
from typing import Annotated

import typer

from unicorn_hf.cli import app
from unicorn_hf.cli.command import Argument, Flag, command
from unicorn_hf.synthesis.config import ReportConfig

group = typer.Typer(help="Reports about the output of a step.")
app.add_typer(group, name="report")


@command(
    group,
    "captions",
    prefix="report",
    examples=["unicorn-hf report captions captions", "unicorn-hf report captions captions -o report --encoder sandbox"],
)
def report_captions(
    captions: Annotated[str, Argument("The output of `captions`: a dataset with the column caption.")],
    config: ReportConfig,
    output: Annotated[Path | None, Flag("The folder to write; CAPTIONS.report by default.", "--output", "-o")] = None,
):
    """Report how diverse captions are, as JSON and HTML."""
    from unicorn_hf.synthesis.report import report_captions

    print(report_captions(captions, output, config=config))
