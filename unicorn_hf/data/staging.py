"""Files and folders that appear under their final name only when they are whole."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from unicorn_hf.errors import InputError


@contextlib.contextmanager
def new_folder(output) -> Iterator[Path]:
    """A folder that appears under the name `output` only when the block has ended well.

    Raises:
        InputError: `output` exists and is not an empty folder.
    """
    output = Path(output)
    check_new_folder(output)
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if output.exists():
            output.rmdir()
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_new_folder(output) -> None:
    """Raise `InputError` where `output` is something else than a missing or an empty folder."""
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output}: exists and is not an empty folder; name another folder, or remove this one")


def write_json(value, path) -> None:
    """Write `value` as JSON to `path`, through a temporary name."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.rename(path)
