"""The released JSON lists (`Pretrain.json`, `Instruction.json`) -> our rows, in one streaming pass.

A record is `{"id", "caption", "conversations": [{"from", "value"}, ...]}`. One that cannot be used is set aside with
the reason; every record is either in the rows or among the rejected.
"""

import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from unicorn_hf.errors import InputError

PLACEHOLDER = "<image>"
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


class Rejected:
    """Rejected records, added to a JSON-lines file as `{"config", "reason", "record"}` and counted by reason."""

    def __init__(self, path, config: str):
        self.path, self.config = Path(path), config
        self.counts: Counter[str] = Counter()
        self._file = None

    def add(self, reason: str, record) -> None:
        self.counts[reason] += 1
        if self._file is None:
            self._file = self.path.open("a", encoding="utf-8")
        line = {"config": self.config, "reason": reason, "record": record}
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._file is not None:
            self._file.close()

    def __str__(self):
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.counts.items()))
        return f"{self.counts.total():,} records rejected ({reasons})"


def read_rows(path, *, with_messages: bool, rejected: Rejected, batch_size: int = 1000) -> Iterator[list[dict]]:
    """Batches of rows `{"id", "caption"}`, with `messages` (and `task`, where the record names one) if asked for.

    Raises:
        InputError: the file is no JSON list of records, or ends before its list does.
    """
    seen: set[str] = set()
    records = iter_records(path)
    while batch := list(islice(records, batch_size)):
        rows = []
        for record in batch:
            row = convert(record, with_messages=with_messages)
            if isinstance(row, dict) and row["id"] in seen:
                row = "duplicate id"
            if isinstance(row, str):
                rejected.add(row, record)
            else:
                seen.add(row["id"])
                rows.append(row)
        yield rows


def iter_records(path) -> Iterator:
    """The members of a JSON list, or the lines of a JSON-lines file, one by one: memory does not grow with the file.

    Raises:
        InputError: the file holds something else, or ends too early.
    """
    import ijson

    with Path(path).open("rb") as file:
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        if start not in (b"[", b"{"):
            raise InputError(f"{path}: is no JSON list of records, nor JSON lines (it begins with {start!r})")
        file.seek(0)
        if file.read(3) != b"\xef\xbb\xbf":
            file.seek(0)
        count = 0
        try:
            for record in ijson.items(
                file, "item" if start == b"[" else "", multiple_values=start == b"{", use_float=True, buf_size=1 << 20
            ):
                yield record
                count += 1
        except ijson.JSONError as error:
            reason = " ".join(str(error).split())[:120]
            raise InputError(f"{path}: is damaged after record {count:,} ({reason}); fetch the file again") from error


def convert(record, *, with_messages: bool) -> dict | str:
    """A row made of a released record, or the reason why it makes none."""
    if not isinstance(record, dict):
        return "not a record"
    if record.get("id") in (None, "") or not isinstance(record["id"], str | int):
        return "no id"
    caption = record.get("caption")
    if not isinstance(caption, str) or not caption.strip():
        return "no caption"
    row = {"id": str(record["id"]), "caption": caption}
    if not with_messages:
        return row
    messages = convert_turns(record.get("conversations"))
    if isinstance(messages, str):
        return messages
    task = record.get("task")
    return {**row, "task": task if isinstance(task, str) else None, "messages": messages}


def convert_turns(turns) -> list[dict[str, str]] | str:
    """Chat messages made of `from`/`value` turns, or the reason why they make none.

    The placeholder is taken out wherever it stands and put before the first user turn.
    """
    if not isinstance(turns, list) or not turns:
        return "no conversation"
    messages = []
    for turn in turns:
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            return "empty turn"
        if str(turn.get("from")) not in ROLES:
            return "unknown role"
        content = turn["value"].replace(PLACEHOLDER, "").strip()
        if not content and ROLES[turn["from"]] != "user":
            return "empty turn"
        messages.append({"role": ROLES[turn["from"]], "content": content})
    spoken = messages[1:] if messages[0]["role"] == "system" else messages
    if (
        not spoken
        or len(spoken) % 2
        or any(message["role"] != ("user", "assistant")[place % 2] for place, message in enumerate(spoken))
    ):
        return "odd turns"
    spoken[0]["content"] = f"{PLACEHOLDER}\n{spoken[0]['content']}".rstrip()
    return messages
