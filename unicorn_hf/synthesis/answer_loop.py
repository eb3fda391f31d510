"""Asks a language model all open requests of a rank, and writes each answer to the journal when it arrives."""

import asyncio
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator

from unicorn_hf.errors import InputError
from unicorn_hf.progress import progress_bar
from unicorn_hf.synthesis.answers import BadAnswer
from unicorn_hf.synthesis.completion import CallFailed, Prompt
from unicorn_hf.synthesis.journal import DEAD, OK, REJECTED, RETRY, Journal, read_journal
from unicorn_hf.synthesis.untrusted_text import neutralise
from unicorn_hf.synthesis.usage import Usage, in_units, money
from unicorn_hf.synthesis.work_folder import WorkFolder

MAX_REASKS = 2
_MORE_ROOM = 8  # an answer that was truncated is asked again with this many times the tokens
_KEPT_ANSWER_CHARS = 2000  # of a rejected answer


async def answer_rank(stage, writer, work: WorkFolder, rank: int, budget: float | None = None) -> None:
    """Answer all requests of a rank that its journal does not hold yet.

    Args:
        budget: money that this rank may spend, earlier runs included; it stops cleanly before it would spend more.

    Raises:
        InputError: no call can succeed, too many calls failed in a row, or the disk is full.
    """
    num_requests = work.plan()["shards"][rank] * stage.per_row
    stopped = work.stopped_path(rank)
    stopped.unlink(missing_ok=True)
    with Journal(work.journal_path(rank)) as journal:
        done, usage, _ = replay(work, rank, num_requests)
        if all(done):
            return
        progress = progress_bar(
            total=num_requests,
            initial=sum(done),
            desc=f"{stage.name} {rank}",
            unit="request",
            position=rank,
            mininterval=1,
        )
        stage.warm_up()  # before the loop: a pause of seconds inside it would let running calls time out
        async with writer:
            loop = _AnswerLoop(stage, writer, journal, usage, budget, progress)
            await loop.run(pending(stage, work, rank, done))
        loop.progress.close()
        if loop.left_out:
            stopped.touch()


def replay(work: WorkFolder, rank: int, num_requests: int) -> tuple[bytearray, Usage, Usage]:
    """Which requests a rank's journal answers (one byte each), the usage of all, and the part of it used by checks."""
    done, usage, checking = bytearray(num_requests), Usage(), Usage()
    for _, entry in read_journal(work.journal_path(rank)):
        if entry["request"] < num_requests:
            done[entry["request"]] = entry["status"] != RETRY
        usage.add(Usage(*entry.get("usage", ())))
        checking.add(Usage(*entry.get("checking", ())))
    return done, usage, checking


def pending(stage, work: WorkFolder, rank: int, done: bytearray) -> Iterator[tuple[int, dict, int]]:
    """(number of the request in its rank, row, number of the request in its row) of every open request."""
    for position, row in enumerate(work.rows(rank)):
        for number in range(stage.per_row):
            request = position * stage.per_row + number
            if not done[request]:
                yield request, row, number


async def answer(stage, writer, row: dict, number: int, may_spend: Callable[[Usage], bool]) -> dict:
    """The journal entry of one request, without the request's number.

    Args:
        may_spend: whether the budget allows this usage on top of `most_usage`.
    """
    usage, checking = Usage(), Usage()
    try:
        record = await _ask(writer, stage.prompt(row, number), functools.partial(stage.read, row), usage, may_spend)
        second = stage.verification(row, record)
        if second is not None:
            # A check is asked again only if its answer cannot be read, never because it disagrees.
            confirm = functools.partial(stage.confirm, record)
            await _ask(writer, second, confirm, checking, may_spend, only_malformed=True)
        entry = {"status": OK, "record": record}
    except BadAnswer as error:
        entry = refusal_entry(error)
    except CallFailed as error:
        usage.add(error.usage)
        entry = {"status": DEAD, "reason": error.reason, "detail": error.detail}
    if checking.calls:
        usage.add(checking)
        entry["checking"] = list(dataclasses.astuple(checking))
    return entry | {"usage": list(dataclasses.astuple(usage))}


def refusal_entry(error: BadAnswer) -> dict:
    """The journal entry of a rejected answer."""
    return {
        "status": DEAD if error.malformed else REJECTED,
        "reason": error.reason,
        "detail": error.detail,
        "answer": neutralise(error.answer, _KEPT_ANSWER_CHARS),
    }


async def _ask(
    writer,
    prompt: Prompt,
    read: Callable,
    usage: Usage,
    may_spend: Callable[[Usage], bool],
    only_malformed: bool = False,
):
    """The record that `read` finds in the answer; a bad answer is sent back with what is wrong with it.

    One that was cut off is asked again with more tokens, up to the writer's bound.
    """
    asked = prompt = dataclasses.replace(prompt, max_tokens=min(prompt.max_tokens, writer.max_tokens))
    for reask in range(MAX_REASKS + 1):
        completion = await writer.complete(asked)
        usage.add(completion.usage)
        try:
            return read(completion.text, completion.cut_off)
        except BadAnswer as error:
            error.answer = completion.text
            last = reask == MAX_REASKS or (only_malformed and not error.malformed)
            if error.cut_off:
                room = min(_MORE_ROOM * prompt.max_tokens, writer.max_tokens)
                more = Usage(completion_tokens=(MAX_REASKS - reask) * (room - prompt.max_tokens))
                if last or not more.completion_tokens or not may_spend(more):
                    error.detail = f"the answer was cut off at {prompt.max_tokens} tokens (--max-tokens sets the limit)"
                    raise
                prompt = dataclasses.replace(prompt, max_tokens=room)
                asked = dataclasses.replace(asked, max_tokens=room)
                continue
            if last:
                raise
            asked = dataclasses.replace(
                prompt,
                messages=[
                    *prompt.messages,
                    {"role": "assistant", "content": neutralise(completion.text, _KEPT_ANSWER_CHARS) or "(empty)"},
                    {
                        "role": "user",
                        "content": f"That cannot be used: {error.detail}. Answer again, as asked at first.",
                    },
                ],
                seed=prompt.seed + reask + 1,
            )


def most_usage(prompt: Prompt, num_passes: int) -> Usage:
    """The most tokens that a request can use with all its repetitions, if no answer is truncated."""
    calls = (MAX_REASKS + 1) * num_passes
    num_bytes = sum(len(message["content"].encode()) for message in prompt.messages)
    prompt_tokens = (num_bytes + MAX_REASKS * _KEPT_ANSWER_CHARS) // 3  # a token of text is rarely shorter than 3 bytes
    return Usage(calls, 0, calls * prompt_tokens, calls * prompt.max_tokens)


class _AnswerLoop:
    def __init__(self, stage, writer, journal: Journal, usage: Usage, budget: float | None, progress):
        self.stage, self.writer, self.journal = stage, writer, journal
        self.usage, self.budget, self.progress = usage, budget, progress
        self.left_out = False  # whether the budget was too small for a request
        self._out_of_budget = False
        self._reserved = 0.0  # the most that the running calls can cost
        self._failed_in_a_row: list[int] = []  # requests in the journal; taken back if the run stops because all fail
        self._rejected = self._dead = 0

    async def run(self, requests: Iterator[tuple[int, dict, int]]) -> None:
        workers = [asyncio.create_task(self._work(requests)) for _ in range(self.writer.concurrency)]
        watch = asyncio.create_task(self._watch())
        try:
            await asyncio.gather(*workers)
        finally:
            for task in (watch, *workers):
                task.cancel()
            await asyncio.gather(watch, *workers, return_exceptions=True)
        self._show()

    async def _work(self, requests: Iterator[tuple[int, dict, int]]) -> None:
        while not self._out_of_budget:
            try:
                request, row, number = next(requests)
            except StopIteration:
                return
            reserve = self._reserve(row, number)
            if reserve is None:
                return
            reserved = [reserve]
            may_spend = functools.partial(self._reserve_more, reserved)
            entry = await answer(self.stage, self.writer, row, number, may_spend)
            self._reserved -= sum(reserved)
            self._write_down(request, entry)

    def _write_down(self, request: int, entry: dict) -> None:
        self.usage.add(Usage(*entry["usage"]))
        self.progress.update()
        self._rejected += entry["status"] == REJECTED
        self.journal.append({"request": request, **entry})
        if entry["status"] != DEAD:
            self._failed_in_a_row.clear()
            return
        self._dead += 1
        self._failed_in_a_row.append(request)
        if len(self._failed_in_a_row) >= max(32, 2 * self.writer.concurrency):
            for failed in self._failed_in_a_row:  # their usage still counts, and they are asked again
                self.journal.append({"request": failed, "status": RETRY})
            raise InputError(
                f"the last {len(self._failed_in_a_row)} requests failed ({entry['reason']}: {entry['detail']}); check "
                "the server or the model, then run the same command again: it continues from here"
            )

    def _reserve(self, row: dict, number: int) -> float | None:
        """Reserve the most that one more request can cost; None if the budget is too small."""
        if self.budget is None:
            return 0.0
        try:
            most = self.writer.prices.cost(most_usage(self.stage.prompt(row, number), self.stage.num_passes))
        except BadAnswer:  # rejected before it is sent
            return 0.0
        if not self._fits(most):
            self.left_out = True
            # The running requests may cost less than reserved, and leave room for this one.
            self._out_of_budget = self._reserved == 0
            return None
        self._reserved += most
        return most

    def _reserve_more(self, reserved: list[float], usage: Usage) -> bool:
        """Reserve the cost of `usage` for a running request; False if the budget is too small."""
        most = self.writer.prices.cost(usage)
        if not self._fits(most):
            return False
        self._reserved += most
        reserved.append(most)
        return True

    def _fits(self, most: float) -> bool:
        return self.budget is None or self.writer.prices.cost(self.usage) + self._reserved + most <= self.budget

    async def _watch(self) -> None:
        """Show the cost of the run, and exit if the process that started it is gone (after a kill)."""
        parent = os.getppid()
        while True:
            await asyncio.sleep(1)
            self._show()
            if os.getppid() != parent:
                os._exit(1)

    def _show(self) -> None:
        cost = self.writer.prices.cost(self.usage)
        self.progress.set_postfix_str(
            f"{in_units(self.usage.prompt_tokens)} in, {in_units(self.usage.completion_tokens)} out, "
            f"{money(cost)} spent, {self._rejected} rejected, {self._dead} failed"
        )
