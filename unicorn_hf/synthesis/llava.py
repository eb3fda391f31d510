"""Conversations in the format that LLaVA and Bunny train on."""

import json
from pathlib import Path

_SPEAKERS = {"user": "human", "assistant": "gpt"}


def write_llava(folder: Path) -> None:
    """Write `conversations.json` beside the shards: `[{"id", "caption", "conversations": [{"from", "value"}]}]`."""
    import pyarrow.parquet as pq

    with (folder / "conversations.json").open("w", encoding="utf-8") as file:
        separator = "[\n"
        for shard in sorted((folder / "data").glob("*.parquet")):
            for batch in pq.ParquetFile(shard).iter_batches(1000, columns=["id", "caption", "messages"]):
                for row in batch.to_pylist():
                    turns = [{"from": _SPEAKERS[turn["role"]], "value": turn["content"]} for turn in row["messages"]]
                    record = {"id": row["id"], "caption": row["caption"], "conversations": turns}
                    file.write(separator + json.dumps(record, ensure_ascii=False))
                    separator = ",\n"
        file.write("\n]\n")
