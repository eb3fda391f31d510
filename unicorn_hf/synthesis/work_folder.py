"""The folder beside an output while it is being written: shards of the input, prompts, journals and the plan."""

import filecmp
import hashlib
import json
import shutil
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

from unicorn_hf.data.staging import read_json, rename_durably, start_folder, sync, sync_tree, write_json
from unicorn_hf.errors import InputError
from unicorn_hf.synthesis.journal import DEAD, OK, RETRY, Journal, read_journal

_PLAN_KEYS = ("kind", "stage", "finish", "writer_name", "model", "prices", "writer", "shards", "retries")


class WorkFolder:
    """`<output>.work`: it survives a kill, and is deleted when the output is complete and nothing is left to retry."""

    def __init__(self, output):
        self.output = Path(output).absolute()
        self.path = self.output.with_name(f"{self.output.name}.work")

    def prepare(self, rows: Iterable[dict], count: int, plan: dict, settings: dict, prompts, tasks: int) -> None:
        """Write a shard of `rows` for every rank, the prompts and the plan; an unfinished run of the same plan resumes.

        Args:
            plan: the settings that determine the output.
            settings: the settings that may change from one run to the next.

        Raises:
            InputError: the folder holds an unfinished run with another plan.
        """
        digest = hashlib.sha256()
        partial = start_folder(self.path)  # also if a run exists: its damaged files are written again
        (partial / "shards").mkdir()
        rows = iter(rows)
        sizes = [count * (rank + 1) // tasks - count * rank // tasks for rank in range(tasks)]
        for rank, size in enumerate(sizes):
            with (partial / "shards" / f"{rank:05d}.jsonl").open("wb") as file:
                for _ in range(size):
                    line = json.dumps(next(rows), ensure_ascii=False).encode() + b"\n"
                    digest.update(line)
                    file.write(line)
        prompts.copy_to(partial / "prompts")
        plan = {**plan, "prompts": prompts.versions(), "input": digest.hexdigest(), "shards": sizes}
        plan, settings = (json.loads(json.dumps(value)) for value in (plan, settings))  # as it will be read back
        before = self.plan() if self.path.exists() else None
        changed = [key for key in plan if plan[key] != before.get(key)] if before else []
        if before and changed and not self._has_answers(before):
            self.remove()  # for example after a wrong model: no answer is worth keeping
            before = None
        if before:
            if changed:
                shutil.rmtree(partial)
                raise InputError(
                    f"{self.path}: holds an unfinished run with another {' and '.join(changed)}; run that one again, "
                    "or remove the folder"
                )
            for path in (path for name in ("shards", "prompts") for path in (partial / name).iterdir()):
                kept = self.path / path.relative_to(partial)
                if not kept.is_file() or not filecmp.cmp(path, kept, shallow=False):
                    kept.parent.mkdir(exist_ok=True)
                    rename_durably(path, kept)
            shutil.rmtree(partial)
            write_json({**before, **settings}, self.path / "plan.json")
            return
        write_json({**plan, **settings, "retries": 0}, partial / "plan.json")
        sync_tree(partial)
        partial.rename(self.path)
        sync(self.path.parent)

    def _has_answers(self, plan: dict) -> bool:
        """Whether the journals hold a kept answer.

        Raises:
            InputError: another process writes to it.
        """
        for rank in range(len(plan["shards"])):
            if self.journal_path(rank).exists():
                with Journal(self.journal_path(rank)):
                    if any(entry["status"] == OK for _, entry in read_journal(self.journal_path(rank))):
                        return True
        return False

    def plan(self) -> dict:
        """The saved plan.

        Raises:
            InputError: there is none, or it is damaged.
        """
        path = self.path / "plan.json"
        if not path.is_file():
            raise InputError(
                f"{self.path}: holds no unfinished run; expected the folder that a run with failures leaves"
            )
        plan = read_json(path)
        if any(key not in plan for key in _PLAN_KEYS) or not isinstance(plan["shards"], list):
            raise InputError(f"{path}: is damaged (no plan of a run); remove {self.path} to start again")
        return plan

    @property
    def prompt_dir(self) -> str:
        return str(self.path / "prompts")

    def logging_dir(self) -> Path:
        """datatrove's logs and markers; a retry has its own, so that every rank runs again."""
        return self.path / "logs" / f"{self.plan()['retries']:02d}"

    def journal_path(self, rank: int) -> Path:
        return self.path / "journal" / f"{rank:05d}.jsonl"

    def stopped_path(self, rank: int) -> Path:
        """A file that exists if the rank stopped because the budget was used up."""
        return self.journal_path(rank).with_suffix(".stopped")

    def rows(self, rank: int) -> Iterator[dict]:
        """The rows of a rank's shard.

        Raises:
            InputError: the shard is damaged.
        """
        path, size = self.path / "shards" / f"{rank:05d}.jsonl", self.plan()["shards"][rank]
        count = 0
        try:
            with path.open("rb") as file:
                for count, line in enumerate(file, 1):
                    row = json.loads(line)
                    if not isinstance(row, dict) or count > size:
                        raise ValueError("no row of it")
                    yield row
            if count < size:
                raise ValueError(f"it ends after {count} of {size} rows")
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(
                f"{path}, line {count}: is damaged ({error}); run the command that began this run again: it "
                "rewrites the rows and keeps the answers"
            ) from error

    def reopen_ranks(self, per_row: int) -> None:
        """Let a rank run again if it is marked as done, but its journal has lost answers since."""
        for rank, size in enumerate(self.plan()["shards"]):
            marker = self.logging_dir() / "ranks" / "completions" / f"{rank:05d}"
            if not marker.exists() or self.stopped_path(rank).exists():
                continue
            if any(entry is None for entry in self.entries(rank, size * per_row)):
                marker.unlink()

    def entries(self, rank: int, num_requests: int) -> Iterator[dict | None]:
        """The last journal entry of every request of a rank, in order; None if it has no entry."""
        last = array("q", [-1]) * num_requests  # only one offset per request, so that large answers take no memory
        for offset, entry in read_journal(self.journal_path(rank)):
            if entry["request"] < num_requests:
                last[entry["request"]] = -1 if entry["status"] == RETRY else offset
        if not self.journal_path(rank).exists():
            yield from (None for _ in last)
            return
        with self.journal_path(rank).open("rb") as file:
            for offset in last:
                if offset < 0:
                    yield None
                else:
                    file.seek(offset)
                    yield json.loads(file.readline())

    def take_back_failures(self, per_row: int, **settings) -> int:
        """Mark every failed request, so that it is asked again. Returns their number."""
        plan, count = self.plan(), 0
        for rank, size in enumerate(plan["shards"]):
            with Journal(self.journal_path(rank)) as journal:
                for request, entry in enumerate(self.entries(rank, size * per_row)):
                    count += entry is None
                    if entry and entry["status"] == DEAD:
                        journal.append({"request": request, "status": RETRY})
                        count += 1
        write_json({**plan, **settings, "retries": plan["retries"] + 1}, self.path / "plan.json")
        return count

    def remove(self) -> None:
        shutil.rmtree(self.path)
