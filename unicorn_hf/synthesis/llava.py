"""Conversations in the format that LLaVA and Bunny train on."""

import json
from pathlib import Path

_SPEAKERS = {"user": "human", "assistant": "gpt"}


def write_llava(folder: Path) -> None:
    """Write `conversations.json` beside the shards: `[{"id", "caption", "conversations": [{"from", "value"}]}]`."""
    from unicorn_hf.data.tables import open_tables, table_files

    with (folder / "conversations.json").open("w", encoding="utf-8") as file:
        separator = "[\n"
        rows = open_tables(table_files(folder), str(folder))
        for table in rows.read_all(["id", "caption", "messages"]):
            for row in table.to_pylist():
                turns = [{"from": _SPEAKERS[turn["role"]], "value": turn["content"]} for turn in row["messages"]]
                record = {"id": row["id"], "caption": row["caption"], "conversations": turns}
                file.write(separator + json.dumps(record, ensure_ascii=False))
                separator = ",\n"
        file.write("\n]\n")
