"""Errors that a user can correct, each reported in one sentence.

The command line prints them and exits with status 2; in Python they are ordinary exceptions. A file that the system
does not let us read or write ends a command in the same way.
"""

import contextlib
import errno
import importlib.util
import sys
from typing import NoReturn

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)
_MOST_CHARS = 1500  # of a sentence
_NO_NAME = (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)


class InputError(ValueError):
    """Input that cannot be used. The message names the file, the row, the value, what was expected and what to do."""

    def __init__(self, message: str):
        # A message may quote a library's message of several lines; join them.
        super().__init__(" ".join(line.strip() for line in str(message).splitlines()))


class MissingExtraError(ImportError):
    """A feature whose optional dependency is not installed. The message names the extra to install."""


def require(package: str, extra: str) -> None:
    """Raise `MissingExtraError` unless `package` (an import name) is installed; `extra` is the extra to install."""
    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(
            f"This needs the package {package!r}, which is not installed: pip install 'unicorn-hf[{extra}]'"
        )


@contextlib.contextmanager
def one_sentence_errors():
    """For the outermost block of a command: print an error that a user can correct, and exit with status 2."""
    try:
        yield
    except (InputError, MissingExtraError) as error:
        fail(str(error))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "unicorn_hf":
            raise
        fail(f"the package {error.name!r} is not installed; install what this package needs: pip install unicorn-hf")
    except UnicodeEncodeError as error:
        if not any("\ud800" <= character <= "\udfff" for character in error.object):
            raise
        fail(f"{ascii(error.object)[:200]}: is no text in UTF-8, in which all data are written; rename or mend it")
    except OSError as error:
        file = f"{error.filename}: " if error.filename else ""
        if error.errno in DISK_FULL:
            fail(f"{file}the disk is full ({error.strerror}); make room and run the same command again")
        if error.errno in _NO_ACCESS and file:
            fail(f"{file}cannot be read or written ({error.strerror}); name another path")
        if error.errno in _NO_NAME and file:
            fail(f"{file[:200]}: is not a valid file name ({error.strerror}); name another")
        raise


def fail(sentence: str) -> NoReturn:
    """Print a sentence and exit with status 2; of one that quotes megabytes the middle is left out."""
    if len(sentence) > _MOST_CHARS:
        sentence = f"{sentence[: _MOST_CHARS // 2]} … {sentence[-_MOST_CHARS // 2 :]}"
    print(f"unicorn-hf: {sentence}", file=sys.stderr)
    sys.exit(2)
