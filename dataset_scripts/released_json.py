"""The released JSON lists (`Pretrain.json`, `Instruction.json`) -> our rows, in one streaming pass.

A record is `{"id", "caption", "conversations": [{"from", "value"}, ...]}`. Every record becomes a row or is rejected
with a reason. Changes relative to the data that the released code trains on are counted.
"""

import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TextIO

from unicorn_hf.data.json_nesting import ShallowFile
from unicorn_hf.data.markup import without_marks
from unicorn_hf.errors import InputError

PLACEHOLDER = "<image>"
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


class Rejected:
    """Rejected records, appended to a JSON-lines file as `{"config", "reason", "record"}` and counted by reason.

    `changes` counts the changes made to records that became rows.
    """

    def __init__(self, path, config: str):
        self.path, self.config = Path(path), config
        self.counts: Counter[str] = Counter()
        self.changes: Counter[str] = Counter()
        self._file: TextIO | None = None

    def add(self, reason: str, record) -> None:
        self.counts[reason] += 1
        if self._file is None:
            self._file = self.path.open("a", encoding="utf-8")
        line = {"config": self.config, "reason": reason, "record": record}
        try:
            text = json.dumps(line, ensure_ascii=False)
        except RecursionError:
            text = json.dumps({**line, "record": "nested too deep to be written here"})
        self._file.write(text + "\n")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._file is not None:
            self._file.close()

    def __str__(self):
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.counts.items()))
        return f"{self.counts.total():,} records rejected ({reasons})"

    def changes_text(self) -> str:
        changes = ", ".join(f"{change} in {count:,}" for change, count in sorted(self.changes.items()))
        return f"changed in the records: {changes}"


def read_rows(path, *, with_messages: bool, rejected: Rejected, batch_size: int = 1000) -> Iterator[list[dict]]:
    """Batches of rows `{"id", "caption", "record"}`; with `with_messages` also `messages` and `task`.

    If several records have the same id, all become rows, and the ids of the later ones end in `-2`, `-3`, ...

    Raises:
        InputError: the file is not a JSON list of records, or is cut short.
    """
    numbers: dict[str, int] = {}  # id -> the last suffix given to it
    records = iter_records(path)
    while batch := list(islice(records, batch_size)):
        rows = []
        for record in batch:
            changes: Counter[str] = Counter()
            row = convert(record, with_messages=with_messages, changes=changes)
            if isinstance(row, str):
                rejected.add(row, record)
                continue
            if row["id"] in numbers:
                row["id"] = _unused_id(row["id"], numbers)
                changes["id made unique"] += 1
            numbers[row["id"]] = 1
            rejected.changes.update(changes)
            rows.append({**row, "record": record})
        yield rows


def _unused_id(id_: str, numbers: dict[str, int]) -> str:
    while (unused := f"{id_}-{numbers[id_] + 1}") in numbers:
        numbers[id_] += 1
    numbers[id_] += 1
    return unused


def iter_records(path) -> Iterator:
    """The members of a JSON list, or the lines of a JSON-lines file, one by one: memory does not grow with the file.

    Raises:
        InputError: the file holds something else, is cut short, or is nested too deep.
    """
    import ijson

    with Path(path).open("rb") as file:
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        if start not in (b"[", b"{"):
            raise InputError(f"{path}: is neither a JSON list of records nor JSON lines (it begins with {start!r})")
        file.seek(0)
        if file.read(3) != b"\xef\xbb\xbf":
            file.seek(0)
        count = 0
        try:
            for record in ijson.items(
                ShallowFile(file, path),
                "item" if start == b"[" else "",
                multiple_values=start == b"{",
                use_float=True,
                buf_size=1 << 20,
            ):
                yield record
                count += 1
        except ijson.JSONError as error:
            reason = " ".join(str(error).split())[:120]
            raise InputError(f"{path}: is damaged after record {count:,} ({reason}); fetch the file again") from error


def convert(record, *, with_messages: bool, changes: Counter | None = None) -> dict | str:
    """A released record as a row, or the reason for rejecting it; `changes` counts the changes made to it."""
    if not isinstance(record, dict):
        return "not a record"
    if record.get("id") in (None, "") or not isinstance(record["id"], str | int):
        return "no id"
    caption = record.get("caption")
    if not isinstance(caption, str) or not caption.strip():
        return "no caption"
    changes = Counter() if changes is None else changes
    row = {"id": str(record["id"]), "caption": _text(caption, changes)}
    if not with_messages:
        return row
    messages = convert_turns(record.get("conversations"), changes)
    if isinstance(messages, str):
        return messages
    task = record.get("task")
    return {**row, "task": task if isinstance(task, str) else None, "messages": messages}


def convert_turns(turns, changes: Counter | None = None) -> list[dict[str, str]] | str:
    """`from`/`value` turns as chat messages, or the reason for rejecting them.

    As in the released code, a first turn of the assistant is dropped, the image placeholder moves to the front of its
    question, and words stay unchanged. Unlike there, a conversation has exactly one image, before its first question,
    and other markup tokens of prompt formats are neutralised: they stay in the text as plain words.
    """
    changes = Counter() if changes is None else changes
    if not isinstance(turns, list) or not turns:
        return "no conversation"
    messages: list[dict[str, str]] = []
    places: list[int] = []  # of the placeholders: the messages that they stand in
    for turn in turns:
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            return "empty turn"
        if str(turn.get("from")) not in ROLES:
            return "unknown role"
        content, role = turn["value"], ROLES[turn["from"]]
        if count := content.count(PLACEHOLDER):
            places += [len(messages)] * count
            content = content.replace(PLACEHOLDER, "").strip()
        content = _text(content, changes)
        if not content.strip() and role != "user":
            return "empty turn"
        messages.append({"role": role, "content": content})
    first = int(messages[0]["role"] == "system")
    if len(messages) > first and messages[first]["role"] == "assistant":
        del messages[first]
        places = [place - (place > first) for place in places]
        changes["assistant's turn before the first question left out"] += 1
    spoken = messages[first:]
    if (
        not spoken
        or len(spoken) % 2
        or any(message["role"] != ("user", "assistant")[place % 2] for place, message in enumerate(spoken))
    ):
        return "odd turns"
    if not places:
        changes["image added"] += 1
    elif places[0] != first:
        changes["image moved to the first question"] += 1
    if len(places) > 1:
        changes["images merged into one"] += 1
    spoken[0]["content"] = f"{PLACEHOLDER}\n{spoken[0]['content']}".strip()
    return messages


def _text(text: str, changes: Counter) -> str:
    words = without_marks(text)
    if words != text:
        changes["mark of a prompt's format made text"] += 1
    return words
