"""`unicorn-hf`: one command per step, each a thin layer over the function of the same name.

Exit status: 0 done; 2 the input cannot be used (one sentence says why); 3 done, but some rows failed (a file lists
them).
"""

import importlib
import io
import os
import sys

from unicorn_hf.errors import fail, one_sentence_errors

try:
    import typer
except ModuleNotFoundError as error:
    fail(f"the package {error.name!r} is not installed; install it with all it needs: pip install unicorn-hf")

# The base class of click's errors for command lines. It comes from typer, because newer typers bundle their own click.
UsageError = typer.BadParameter.__base__

app = typer.Typer(
    name="unicorn-hf",
    help="Train a vision-language model from text alone.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command that `sys.argv` names, and exit with its status."""
    sys.stdin = io.StringIO()  # a library that asks whether to run a model's code gets no answer, and raises an error
    if not sys.stderr.isatty():
        quieten_progress()
    with one_sentence_errors():
        try:
            status = app(prog_name="unicorn-hf", standalone_mode=False)
        except UsageError as error:
            command = error.ctx.command_path if error.ctx else "unicorn-hf"
            fail(f"{' '.join(error.format_message().split()).rstrip('.')} (see {command} --help)")
        except typer.Abort:
            print("unicorn-hf: stopped; run the same command again to resume, if the step can", file=sys.stderr)
            status = 130
    sys.exit(status or 0)


def quieten_progress() -> None:
    """Limit the progress bars of all libraries to one line every 30 seconds; call it before they are imported."""
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


# Importing a command's file adds the command. This order, the order of the work, is also the order of the help.
for _name in (
    "captions",
    "instructions",
    "preferences",
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
