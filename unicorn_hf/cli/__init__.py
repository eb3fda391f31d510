"""`unicorn-hf`: one command a step, each a thin layer over the function of the same name.

Exit status: 0 done; 2 the input cannot be used (one sentence says why); 3 done but for some rows (a file names them).
"""

import importlib
import io
import os
import sys

from unicorn_hf.errors import fail, one_sentence_errors

try:
    import typer
except ModuleNotFoundError as error:
    fail(
        f"the package {error.name!r} is not installed; install this package with what it needs: pip install unicorn-hf"
    )

# What click raises where a command line cannot be read; newer typers bring a click of their own.
UsageError = typer.BadParameter.__base__

app = typer.Typer(
    name="unicorn-hf",
    help="Train a vision-language model from text alone.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command that `sys.argv` names, and exit with its status."""
    sys.stdin = io.StringIO()  # a library that would ask whether to run a model's code gets no answer, and says so
    if not sys.stderr.isatty():
        quieten_progress()
    with one_sentence_errors():
        try:
            status = app(prog_name="unicorn-hf", standalone_mode=False)
        except UsageError as error:
            command = error.ctx.command_path if error.ctx else "unicorn-hf"
            fail(f"{' '.join(error.format_message().split()).rstrip('.')} (see {command} --help)")
        except typer.Abort:
            print("unicorn-hf: stopped; the same command goes on where it can", file=sys.stderr)
            status = 130
    sys.exit(status or 0)


def quieten_progress() -> None:
    """Say to the bars of all libraries, before they are imported, that a state every half a minute is enough."""
    os.environ.setdefault("TQDM_MININTERVAL", "30")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


@app.callback()
def _options(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and end."),
):
    if version:
        from unicorn_hf import __version__

        print(f"unicorn-hf {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


# Importing a command's file adds it, in the order of the work, which is the order of the help.
for _name in (
    "captions",
    "instructions",
    "retry_failed",
    "report",
    "embed",
    "transfer",
    "gap",
    "publish",
    "import_released",
    "train",
    "evaluate",
    "generate",
    "page",
    "serve",
    "convert",
    "demo",
    "run",
    "environment",
):
    importlib.import_module(f"unicorn_hf.cli.{_name}")
