"""`unicorn-hf`: one command a step, each a thin layer over the function of the same name.

Exit status: 0 done; 2 the input cannot be used (one sentence says why).
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from unicorn_hf.errors import InputError, MissingExtraError

app = typer.Typer(
    help="Train a vision-language model from text alone.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Output = Annotated[Path, typer.Option("--output", "-o", help="The folder to write; must not exist, or be empty.")]


def main() -> None:
    try:
        app()
    except (InputError, MissingExtraError) as error:
        print(f"unicorn-hf: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
