"""What a user can get wrong, told in one sentence.

The command line prints these two and exits with status 2; from Python they are ordinary exceptions. A file that the
system does not let us read or write ends a command in the same way.
"""

import contextlib
import errno
import importlib.util
import sys

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


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
    """For the outermost block of a command: print what a user can mend as one sentence and exit with status 2."""
    try:
        yield
    except (InputError, MissingExtraError) as error:
        _fail(str(error))
    except OSError as error:
        file = f"{error.filename}: " if error.filename else ""
        if error.errno in DISK_FULL:
            _fail(f"{file}the disk is full ({error.strerror}); make room and run the same command again")
        if error.errno in _NO_ACCESS and file:
            _fail(f"{file}cannot be read or written ({error.strerror}); name another place")
        raise


def _fail(sentence: str) -> None:
    print(f"unicorn-hf: {sentence}", file=sys.stderr)
    sys.exit(2)
