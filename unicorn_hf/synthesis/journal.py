"""The answers of one rank, appended to a JSON-lines file as they arrive: a kill costs only the calls in flight."""

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

from unicorn_hf.errors import InputError

# What became of a request. Its last entry counts; `retry` takes it back.
OK, REJECTED, DEAD, RETRY = "ok", "rejected", "dead", "retry"


class Journal:
    """An append-only file that one process at a time may hold open.

    Raises:
        InputError: another process holds it, or the disk is full.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise InputError(f"{path}: another process is writing these answers; wait for it, or stop it") from None
        self._size = _whole_lines(self._file)
        os.ftruncate(self._file, self._size)  # a kill or a full disk may have torn the last line

    def append(self, entry: dict) -> None:
        """Add one entry; it is in the operating system's hands when this returns."""
        line = memoryview(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
        try:
            written = 0
            while written < len(line):
                written += os.write(self._file, line[written:])
        except OSError as error:
            os.ftruncate(self._file, self._size)
            raise InputError(
                f"{self.path}: {error.strerror}; make room and run the same command again: it goes on from here"
            ) from error
        self._size += len(line)

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


def read_journal(path: Path) -> Iterator[tuple[int, dict]]:
    """(offset of the line, entry) for every whole line of a journal; nothing where there is no file."""
    if not path.exists():
        return
    with path.open("rb") as file:
        offset = 0
        for line in file:
            if line.endswith(b"\n"):
                yield offset, json.loads(line)
            offset += len(line)


def _whole_lines(file: int) -> int:
    """The length of a file up to and with its last line feed."""
    end = os.fstat(file).st_size
    while end:
        start = max(0, end - (1 << 16))
        line_feed = os.pread(file, end - start, start).rfind(b"\n")
        if line_feed >= 0:
            return start + line_feed + 1
        end = start
    return 0
