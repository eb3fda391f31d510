"""The released pickles of `[{"id", "caption", "embed": float16[D]}, ...]`, read without running anything in them.

A pickle is a program. This reader allows numbers, strings, lists, dicts and a stand-in for NumPy arrays, and refuses
every other name. It builds arrays from their bytes itself; NumPy's own unpickling is not called. The program is checked
before it runs: its length and the size of what it builds are limited.
"""

import functools
import logging
import pickle
import pickletools
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from unicorn_hf.data.vector_sets import BLOCK_ROWS, TABLE_ROWS, Vectors
from unicorn_hf.errors import InputError

logger = logging.getLogger(__name__)

_MAX_OPCODES = 20_000_000  # a record takes about 40, so this is half a million records
_MAX_TUPLE = 10_000  # members, nested ones included; the shape of an array has only a few


def read_pickle(path):
    """The value of a pickle that holds NumPy arrays of numbers, dicts, lists, tuples, strings and numbers.

    Raises:
        InputError: it holds anything else, or is damaged.
    """
    try:
        with Path(path).open("rb") as file:
            _check_program(file)
            file.seek(0)
            return _finished(_RestrictedUnpickler(file, encoding="latin1").load(), {})
    except _Refused as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:  # a damaged pickle can fail in any way
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{path}: is damaged, or is not a pickle of vectors ({reason})") from error


class PickleVectors(Vectors):
    """The vectors of one pickle or of a folder of them, one file in memory at a time."""

    def __init__(self, path: Path, *, allow_pickle: bool):
        import pyarrow as pa

        self.files = _files(path, allow_pickle)
        self.name = str(path)
        self.schema = pa.schema({"id": pa.string(), "caption": pa.string()})
        self.dtype = self._records(self.files[0])[0]["embed"].dtype
        self.embed_dim = len(self._records(self.files[0])[0]["embed"])

    @functools.cached_property
    def num_rows(self) -> int:  # type: ignore[override]  # a cached property can be written too
        return sum(len(self._records(file)) for file in self.files)

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[np.ndarray]:
        for records in self._batches(rows):
            yield np.stack([record["embed"] for record in records])

    def tables(self) -> Iterator:
        import pyarrow as pa

        for records in self._batches(TABLE_ROWS):
            columns = {
                "id": [str(record["id"]) for record in records],
                "caption": [str(record.get("caption", "")) for record in records],
            }
            yield pa.table(columns, schema=self.schema), np.stack([record["embed"] for record in records])

    def table_schema(self):
        return self.schema

    def row_id(self, row: int) -> str | None:
        for file in self.files:
            records = self._records(file)
            if row < len(records):
                return str(records[row]["id"])
            row -= len(records)
        return None

    def _batches(self, rows: int) -> Iterator[list[dict]]:
        for file in self.files:
            records = self._records(file)
            for start in range(0, len(records), rows):
                yield records[start : start + rows]

    @functools.lru_cache(maxsize=1)  # noqa: B019 (one file's records, let go with the next file)
    def _records(self, file: Path) -> list[dict]:
        records = read_pickle(file)
        if not isinstance(records, list) or not records:
            raise InputError(f"{file}: holds a {type(records).__name__}; expected a list of records that is not empty")
        for row, record in enumerate(records):
            embed = _embed(record)
            if embed is None or "id" not in record:
                raise InputError(f"{file}: record {row} is not of the form {{'id': ..., 'embed': array}}")
            record["embed"] = embed
            expected = getattr(self, "embed_dim", records[0]["embed"].size)
            if embed.size != expected:
                raise InputError(
                    f"{file}: record {row} (id {record['id']!r}) has {embed.size} dimensions; expected {expected}"
                )
        return records


def usable_blocks(
    path: Path, unusable: dict[str, str], *, allow_pickle: bool
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Ids and vectors, file by file, of the records that have both; the others are skipped as in the released loaders.

    Args:
        path: one pickle or a folder of them; an empty file, or an empty list, has no records.
        unusable: receives the ids without a vector and the reasons.

    Raises:
        InputError: a file is damaged or does not hold a list, or no record has a vector.
    """
    embed_dim = None
    counts: Counter[str] = Counter()
    seen: set[str] = set()
    for file in _files(path, allow_pickle):
        records = read_pickle(file) if file.stat().st_size else []
        if records and not isinstance(records, list):
            raise InputError(f"{file}: holds a {type(records).__name__}; expected a list of records")
        ids, embeds = [], []
        for record in records:
            if not isinstance(record, dict) or record.get("id") is None:
                counts["without id"] += 1
                continue
            id_, embed = str(record["id"]), _embed(record)
            embed_dim = len(embed) if embed_dim is None and embed is not None else embed_dim
            if embed is None or len(embed) != embed_dim:
                reason = "without embedding" if embed is None else "embedding of another length"
                counts[reason] += 1
                if id_ not in seen:
                    unusable[id_] = reason
                continue
            counts["of a repeated id, whose last embedding counts"] += id_ in seen
            seen.add(id_)
            unusable.pop(id_, None)
            ids.append(id_)
            embeds.append(embed)
        if ids:
            yield ids, np.stack(embeds)
    if embed_dim is None:
        raise InputError(f"{path}: has no record of the form {{'id': ..., 'embed': array}}")
    if counts := +counts:
        listed = ", ".join(f"{count:,} {what}" for what, count in sorted(counts.items()))
        logger.warning("%s: records %s", path, listed)


def _files(path: Path, allow_pickle: bool) -> list[Path]:
    if not allow_pickle:
        raise InputError(
            f"{path}: is a pickle, and reading a pickle can run any program; if you trust its source, "
            "allow_pickle=True (--allow-pickle) reads it with a reader that accepts only plain data"
        )
    files = sorted(path.glob("*.pkl"), key=_natural_order) if path.is_dir() else [path]
    if not all(file.is_file() for file in files):
        raise InputError(f"{path}: no such file or folder")
    logger.warning("%s: reading pickles, as allowed; other formats are safer and faster", path)
    return files


def _embed(record) -> np.ndarray | None:
    embed = record.get("embed") if isinstance(record, dict) else None
    return embed.reshape(-1) if isinstance(embed, np.ndarray) and embed.size else None


def _natural_order(path: Path) -> list:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


class _Refused(Exception):
    """A pickle holds something that a file of vectors does not need."""


def _check_program(file) -> None:
    """Raise `_Refused` if a pickle is too long, or nests tuples without end.

    A short program can nest a tuple in tuples many times over. Hashing it (as a key of a dict) walks through all of it,
    so a hundred bytes could run forever. All other work is proportional to the length of the program.
    """
    # For each value its size: the number of members for a tuple, else 1.
    stack: list[int] = []
    memo: dict[int | None, int] = {}
    marks: list[int] = []
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count == _MAX_OPCODES:
            raise _Refused(f"has over {_MAX_OPCODES:,} instructions; split it into files of fewer records")
        name = opcode.name
        if name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in _GETS:
            stack.append(memo[argument])
        elif name == "MARK":
            marks.append(len(stack))
        elif name in _PUTS:
            memo[argument] = stack[-1]
        elif name == "DUP":
            stack.append(stack[-1])
        elif name in _TUPLES:
            first = marks.pop() if name == "TUPLE" else len(stack) - _TUPLES.index(name)
            stack[first:] = [1 + sum(stack[first:])]
            if stack[-1] > _MAX_TUPLE:
                raise _Refused("holds tuples in tuples, which a file of vectors does not need")
        else:
            taken, to_mark, given = _EFFECTS[name]
            first = (marks.pop() if to_mark else len(stack)) - taken
            stack[first:] = given


_GETS, _PUTS = {"GET", "BINGET", "LONG_BINGET"}, {"PUT", "BINPUT", "LONG_BINPUT"}
_TUPLES = ("EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "TUPLE")
# Instruction -> the number of values that it takes from the stack, whether it also takes all values down to a mark, and
# the values that it puts there.
_EFFECTS = {
    opcode.name: (
        opcode.stack_before.index(pickletools.markobject) if is_marked else len(opcode.stack_before),
        is_marked,
        [1] * len(opcode.stack_after),
    )
    for opcode in pickletools.opcodes
    for is_marked in [pickletools.markobject in opcode.stack_before]
}


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        known = _STAND_INS.get((module.replace("numpy.core", "numpy._core"), name))
        if known is None:
            raise _Refused(f"holds {module}.{name}; only numpy arrays, dicts, lists, strings and numbers are allowed")
        return known


class _ArrayType:
    """Stands for `numpy.ndarray`; cannot be called."""


class _NumberType:
    """Stands for a `numpy.dtype` of plain numbers."""

    def __init__(self, code, align=False, copy=False):
        dtype = np.dtype(code) if isinstance(code, str) and re.fullmatch(r"[<>=|]?[fiub]\d{1,2}", code) else None
        if dtype is None:
            raise _Refused(f"holds an array of {code!r}; only arrays of numbers are allowed")
        self.dtype = dtype

    def __setstate__(self, state):
        self.dtype = self.dtype.newbyteorder(state[1] if state[1] in "<>=" else "=")


class _Array:
    """Stands for an array until its bytes are read."""

    def __init__(self, kind, shape, code):
        self.value = None

    def __setstate__(self, state):
        _, shape, number_type, fortran_order, data = state
        self.value = _from_buffer(data, number_type, shape, "F" if fortran_order else "C").value


def _from_buffer(data, number_type, shape, order):
    array = _Array(None, None, None)
    data = data.encode("latin1") if isinstance(data, str) else data
    array.value = np.frombuffer(data, number_type.dtype).reshape(shape, order=order)
    return array


def _scalar(number_type, data):
    data = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(data, number_type.dtype)[0].item()


def _encode(text, encoding="latin1"):
    """Stands for `_codecs.encode`, which old protocols use to write bytes."""
    return text.encode("latin1")


_STAND_INS = {
    ("numpy", "ndarray"): _ArrayType(),
    ("numpy", "dtype"): _NumberType,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _encode,
}


def _finished(value, done: dict):
    """`value` with every stand-in replaced by its array; `done` maps `id(value)` to the result of earlier values."""
    if isinstance(value, _Array):
        return value.value
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    if id(value) in done:
        return done[id(value)]
    result: dict | list | tuple
    if isinstance(value, dict):
        done[id(value)] = result = {}
        result.update((key, _finished(item, done)) for key, item in value.items())
        return result
    if isinstance(value, list):
        done[id(value)] = result = []
        result.extend(_finished(item, done) for item in value)
        return result
    if isinstance(value, tuple):
        done[id(value)] = result = tuple(_finished(item, done) for item in value)
        return result
    raise _Refused(f"holds a {type(value).__name__}; only arrays, dicts, lists, strings and numbers are allowed")
