"""A bound on the nesting of JSON files, which others wrote."""

from codecs import BOM_UTF8
from typing import BinaryIO

import numpy as np

from unicorn_hf.errors import InputError

MOST_LEVELS = 100  # the records of both papers have four

_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class ShallowFile:
    """A JSON file for ijson to read, without its byte order mark, which refuses arrays and objects in too many others.

    ijson names each value by the path to it, so its memory grows with the square of the levels: 100 kB of brackets
    would take 25 GB.
    """

    def __init__(self, file: BinaryIO, name):
        self._file, self._name = file, name
        self._is_start = True
        self._levels = 0
        self._open = b""  # how the next part begins if this one ends within a string

    def read(self, size: int = -1) -> bytes:
        """As of the file.

        Raises:
            InputError: arrays and objects are nested more than `MOST_LEVELS` deep.
        """
        part = self._file.read(size)
        if part and self._is_start:  # ijson begins with an empty read
            part, self._is_start = part.removeprefix(BOM_UTF8), False
        # Without its escapes, a string ends at the next quote.
        text = (self._open + part).replace(rb"\\", b"").replace(rb"\"", b"")
        pieces = text.split(b'"')
        outside, is_open = b"".join(pieces[::2]), len(pieces) % 2 == 0
        self._open = b'"' * is_open + b"\\" * text.endswith(b"\\")
        brackets = np.frombuffer(outside.translate(None, _NO_BRACKETS), np.uint8)
        if len(brackets):
            levels = self._levels + np.cumsum(np.where(np.isin(brackets, [*b"[{"]), 1, -1))
            if levels.max() > MOST_LEVELS:
                raise InputError(f"{self._name}: is nested more than {MOST_LEVELS} levels deep; expected a few")
            self._levels = int(levels[-1])
        return part
