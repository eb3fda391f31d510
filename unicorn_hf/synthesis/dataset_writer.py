"""The last step: journals -> a dataset without duplicates, and a count of the outcomes of all requests."""

import collections
import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from unicorn_hf.data.dataset_folder import write_card
from unicorn_hf.data.staging import finish_folder, write_json
from unicorn_hf.errors import InputError
from unicorn_hf.synthesis.answer_loop import replay
from unicorn_hf.synthesis.duplicates import NearDuplicates, semantic_duplicates
from unicorn_hf.synthesis.journal import DEAD, OK
from unicorn_hf.synthesis.llava import write_llava
from unicorn_hf.synthesis.usage import Prices, Usage
from unicorn_hf.synthesis.work_folder import WorkFolder

CHATS = ("messages", "prompt", "chosen", "rejected")  # columns of lists of {role, content}


class Account:
    """Counts the outcomes of all requests: kept, rejected or failed, by reason."""

    def __init__(self):
        self.rows = 0
        self.rejected, self.dead = collections.Counter(), collections.Counter()
        self.usage, self.checking = Usage(), Usage()
        self.right_letters, self.tasks = collections.Counter(), collections.Counter()
        self.details = {}  # reason -> details of its first request, often the server's message

    def to_dict(self, requested: int, prices: Prices) -> dict:
        return {
            "requested": requested,
            "rows": self.rows,
            "rejected": dict(self.rejected.most_common()),
            "dead_letters": dict(self.dead.most_common()),
            "usage": self.usage.to_dict(),
            "cost": round(prices.cost(self.usage), 6),
            **({"checking": self._checking(prices)} if self.checking.calls else {}),
            **({"tasks": dict(sorted(self.tasks.items()))} if self.tasks else {}),
            **({"right_letters": dict(sorted(self.right_letters.items()))} if self.right_letters else {}),
        }

    def _checking(self, prices: Prices) -> dict:
        """The part of usage and cost that the checks of answers took."""
        return {"usage": self.checking.to_dict(), "cost": round(prices.cost(self.checking), 6)}


def write_answers(
    stage,
    work: WorkFolder,
    *,
    near_duplicates: float | None = None,
    embed_text=None,
    semantic_threshold: float = 0.97,
    llava: bool = False,
) -> dict:
    """Write `data/`, the card, `rejected.jsonl`, `dead_letters.jsonl` and `summary.json`; returns the summary.

    Args:
        near_duplicates: the lowest Jaccard index at which a text is a near duplicate; None keeps them.
        embed_text: texts -> vectors, to leave out semantic duplicates too.
        semantic_threshold: the lowest cosine at which a text is a semantic duplicate.
        llava: also write `conversations.json` as LLaVA and Bunny read it.

    Raises:
        InputError: a request has no answer yet, or no row is left.
    """
    plan, account = work.plan(), Account()
    requested = sum(plan["shards"]) * stage.per_row
    staged = work.path / "output"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    with (
        (staged / "rejected.jsonl").open("w", encoding="utf-8") as rejected,
        (staged / "dead_letters.jsonl").open("w", encoding="utf-8") as dead,
    ):

        def reject(reason: str, row: dict, record: dict) -> None:
            account.rejected[reason] += 1
            _write_line(rejected, {"reason": reason, "row": row, "record": record})

        kept: Iterable[tuple[dict, dict]] = _accepted(stage, work, plan, account, rejected, dead)
        kept = _distinct(stage, kept, near_duplicates, reject)
        if embed_text is not None:
            pairs = list(kept)
            repeated = semantic_duplicates(
                [stage.text(row, record) for row, record in pairs], embed_text, semantic_threshold
            )
            for (row, record), again in zip(pairs, repeated, strict=True):
                if again:
                    reject("semantic_duplicate", row, record)
            kept = [pair for pair, again in zip(pairs, repeated, strict=True) if not again]
        shards, columns = _write_shards(stage, kept, staged / "data", account)
    summary = account.to_dict(requested, Prices(**plan["prices"])) | {
        "writer": plan["writer_name"],
        "model": plan["model"],
        "stage": {key: value for key, value in plan["stage"].items() if key != "prompt_dir"},
        "prompts": plan["prompts"],
    }
    if account.rows + account.rejected.total() + account.dead.total() != requested:
        raise InputError(
            f"{work.path}: {requested} requests, but {account.to_dict(requested, Prices())} are accounted for"
        )
    if not account.rows:
        counts = (account.rejected + account.dead).most_common(5)
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts)
        detail = account.details.get(counts[0][0], "a duplicate")
        raise InputError(
            f"{work.output}: none of {requested} requests gave a row ({reasons}); the first {counts[0][0]}: {detail}; "
            f"see {staged}"
        )
    write_json(summary, staged / "summary.json")
    provenance = {"synthesis": {key: summary[key] for key in ("writer", "model", "prompts")}}
    write_card(
        staged,
        title=stage.title,
        num_rows=account.rows,
        columns=columns,
        provenance=provenance,
        fingerprint=shards.fingerprint,
    )
    if llava:
        write_llava(staged)
    finish_folder(staged, work.output, overwrite=True)  # a retry replaces the output of the run before it
    return summary


def _accepted(stage, work: WorkFolder, plan: dict, account: Account, rejected, dead) -> Iterator[tuple[dict, dict]]:
    """(row, record) of every kept answer; rejected and failed ones are written to their files."""
    for rank, size in enumerate(plan["shards"]):
        num_requests = size * stage.per_row
        _, usage, checking = replay(work, rank, num_requests)
        account.usage.add(usage)
        account.checking.add(checking)
        out_of_budget = work.stopped_path(rank).exists()
        entries = work.entries(rank, num_requests)
        for row in work.rows(rank):
            for number in range(stage.per_row):
                entry = next(entries)
                if entry is None and not out_of_budget:
                    raise InputError(
                        f"{work.path}: rank {rank} has not answered all of its requests; run the same command again"
                    )
                entry = entry or {"status": DEAD, "reason": "out_of_budget", "detail": "not asked"}
                if entry["status"] == OK:
                    yield row, entry["record"]
                    continue
                count, file = (account.dead, dead) if entry["status"] == DEAD else (account.rejected, rejected)
                count[entry["reason"]] += 1
                account.details.setdefault(entry["reason"], " ".join(entry["detail"].split()))
                kept = {key: entry[key] for key in ("reason", "detail", "answer") if key in entry}
                _write_line(file, {**kept, "row": row, "number": number})


def _distinct(stage, pairs, threshold: float | None, reject) -> Iterator[tuple[dict, dict]]:
    near = NearDuplicates(threshold) if threshold else None
    seen = set()
    for row, record in pairs:
        text = stage.text(row, record)
        folded = re.sub(r"\W+", " ", text.lower()).strip().encode()
        key = hashlib.blake2b(folded, digest_size=8).digest()
        if key in seen:
            reject("exact_duplicate", row, record)
        elif near and near.seen(text):
            seen.add(key)
            reject("near_duplicate", row, record)
        else:
            seen.add(key)
            yield row, record


def _write_shards(stage, pairs, folder: Path, account: Account):
    """Write the rows. Returns the shards, and the type of each column in words."""
    import pyarrow as pa

    from unicorn_hf.data.shards import BATCH_ROWS, write_shards

    turn = pa.struct({"role": pa.string(), "content": pa.string()})
    schema = pa.schema([(name, pa.list_(turn) if name in CHATS else pa.string()) for name in stage.columns])

    def tables():
        pairs_left = iter(pairs)
        while batch := list(itertools.islice(pairs_left, BATCH_ROWS)):
            for _, record in batch:
                account.rows += 1
                if "task" in record:
                    account.tasks[record["task"]] += 1
                    if record["task"] == "multiple_choice":
                        answers = (turn["content"] for turn in record["messages"] if turn["role"] == "assistant")
                        account.right_letters.update(answer[-2] for answer in answers)
            yield pa.Table.from_pylist([stage.output_row(row, record) for row, record in batch], schema=schema)

    columns = {name: "List({role: string, content: string})" if name in CHATS else "string" for name in stage.columns}
    return write_shards(tables(), folder, schema), columns


def _write_line(file, value: dict) -> None:
    file.write(json.dumps(value, ensure_ascii=False) + "\n")
