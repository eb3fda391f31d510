"""Captions and conversations with vectors, of a size that a test can read by eye, and the same as released files."""

import json
import pickle
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, List, Value

EMBED_DIM = 16
TASKS = ("multiple_choice", "question_answering", "complex_reasoning")


def vectors(num_rows: int = 60, seed: int = 0) -> np.ndarray:
    """Unit rows, float16 [num_rows, EMBED_DIM]."""
    rows = np.random.default_rng(seed).standard_normal((num_rows, EMBED_DIM))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def ids(num_rows: int = 60) -> list[str]:
    return [f"{row:06d}" for row in range(num_rows)]


def captions(num_rows: int = 60, **columns) -> Dataset:
    """`id, caption, image_embeds`, and further columns of vectors."""
    table = {"id": ids(num_rows), "caption": [f"a scene with {row} things" for row in range(num_rows)]}
    table |= {"image_embeds": vectors(num_rows)} | columns
    features = {name: List(Value("float16"), length=EMBED_DIM) for name in table if name.endswith("_embeds")}
    text = {"id": Value("string"), "caption": Value("string")}
    return Dataset.from_dict({name: list(values) for name, values in table.items()}, Features({**text, **features}))


def conversations(num_rows: int = 20) -> Dataset:
    """`id, caption, task, messages` of every third of the captions."""
    rows = []
    for row in range(0, 3 * num_rows, 3):
        messages = [
            {"role": "user", "content": "<image>\nHow many things?"},
            {"role": "assistant", "content": f"{row} of them"},
        ]
        caption = f"a scene with {row} things"
        rows.append({"id": f"{row:06d}", "caption": caption, "task": TASKS[row % 3], "messages": messages})
    return Dataset.from_list(rows)


def preferences(num_rows: int = 20) -> Dataset:
    """`id, caption, prompt, chosen, rejected` of every third of the captions."""
    rows = []
    for row in conversations(num_rows):
        question, answer = row["messages"]
        wrong = {"role": "assistant", "content": f"{int(row['id']) + 1} of them"}
        pair = {"prompt": [question], "chosen": [answer], "rejected": [wrong]}
        rows.append({"id": row["id"], "caption": row["caption"], **pair})
    return Dataset.from_list(rows)


def released_records(num_rows: int = 60) -> list[dict]:
    return [
        {
            "id": f"{row:06d}",
            "caption": f"a scene with {row} things",
            "conversations": [
                {"from": "human", "value": "<image>\nHow many things?"},
                {"from": "gpt", "value": f"{row} of them"},
            ],
        }
        for row in range(num_rows)
    ]


def write_released(folder: Path, records: list[dict] | None = None, *, num_rows: int = 60) -> Path:
    """`Pretrain.json`, `Instruction.json` and two pickles of vectors, as the papers' authors release them."""
    records = released_records(num_rows) if records is None else records
    embeds = [{"id": f"{row:06d}", "caption": "", "embed": each} for row, each in enumerate(vectors(num_rows))]
    (folder / "embeddings").mkdir(parents=True)
    for name in ("Pretrain.json", "Instruction.json"):
        (folder / name).write_text(json.dumps(records), encoding="utf-8")
    for part in range(2):
        chunk = embeds[part * num_rows // 2 : (part + 1) * num_rows // 2]
        (folder / "embeddings" / f"chunk_{part}.pkl").write_bytes(pickle.dumps(chunk))
    return folder
