"""The answers of one rank, appended to a JSON-lines file as they arrive: a kill costs only the calls in flight."""

import fcntl
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from unicorn_hf.errors import InputError

# The outcomes of a request. Its last entry counts; `retry` takes the entry back.
OK, REJECTED, DEAD, RETRY = "ok", "rejected", "dead", "retry"

logger = logging.getLogger(__name__)


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
        os.ftruncate(self._file, self._size)  # after a kill or on a full disk, the last line may be incomplete

    def append(self, entry: dict) -> None:
        """Add one entry. When this returns, the operating system has it, so a kill cannot lose it."""
        line = memoryview(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
        try:
            written = 0
            while written < len(line):
                written += os.write(self._file, line[written:])
        except OSError as error:
            os.ftruncate(self._file, self._size)
            raise InputError(
                f"{self.path}: {error.strerror}; make room and run the same command again: it continues from here"
            ) from error
        self._size += len(line)

    def close(self) -> None:
        """Write the answers to the disk, before anything says that they are complete."""
        os.fsync(self._file)
        os.close(self._file)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


def read_journal(path: Path) -> Iterator[tuple[int, dict]]:
    """(offset of the line, entry) of every complete line of a journal; empty without a file.

    An invalid line, which a power cut may leave, is skipped, so that its request is sent again; a warning gives the
    number of such lines.
    """
    if not path.exists():
        return
    damaged = 0
    with path.open("rb") as file:
        offset = 0
        for line in file:
            if line.endswith(b"\n"):
                entry = _read_entry(line)
                damaged += entry is None
                if entry is not None:
                    yield offset, entry
            offset += len(line)
    if damaged:
        logger.warning("%s: %d damaged lines are skipped; their requests are sent again", path, damaged)


def _read_entry(line: bytes) -> dict | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or entry.get("status") not in (OK, REJECTED, DEAD, RETRY):
        return None
    request, counts = entry.get("request"), [entry.get(name, []) for name in ("usage", "checking")]
    if type(request) is not int or request < 0 or (entry["status"] == OK and "record" not in entry):
        return None
    are_counts = all(isinstance(count, list) and all(type(number) is int for number in count) for count in counts)
    return entry if are_counts else None


def _whole_lines(file: int) -> int:
    """The length of a file up to its last line feed, which is included."""
    end = os.fstat(file).st_size
    while end:
        start = max(0, end - (1 << 16))
        line_feed = os.pread(file, end - start, start).rfind(b"\n")
        if line_feed >= 0:
            return start + line_feed + 1
        end = start
    return 0
