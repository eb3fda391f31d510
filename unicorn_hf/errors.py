"""What a user can get wrong, told in one sentence.

The command line prints these two and exits with status 2; from Python they are ordinary exceptions.
"""

import contextlib
import importlib.util
import sys


class InputError(ValueError):
    """Input that cannot be used. The message names the file, the row and the value, what was expected, what to do."""


class MissingExtraError(ImportError):
    """A feature whose optional dependency is not installed. The message names the extra to install."""


def require(package: str, extra: str) -> None:
    """Raise `MissingExtraError` unless `package` (an import name) is installed; `extra` is the extra that brings it."""
    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(
            f"This needs the package {package!r}, which is not installed: pip install 'unicorn-hf[{extra}]'"
        )


@contextlib.contextmanager
def one_sentence_errors():
    """For the outermost block of a command: print the two errors above as one sentence and exit with status 2."""
    try:
        yield
    except (InputError, MissingExtraError) as error:
        print(f"unicorn-hf: {error}", file=sys.stderr)
        sys.exit(2)
