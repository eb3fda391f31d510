"""A synthesis job: input rows -> work folder -> ranks that answer -> dataset. `retry` repeats failed requests."""

import contextlib
import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unicorn_hf import executors
from unicorn_hf.data.sources import read_dataset
from unicorn_hf.data.staging import check_new_folder, lock
from unicorn_hf.errors import InputError, require
from unicorn_hf.synthesis.answers import BadAnswer
from unicorn_hf.synthesis.caption_stage import CaptionStage
from unicorn_hf.synthesis.config import RetryConfig, WriterConfig, text_encoder
from unicorn_hf.synthesis.conversation_stage import ConversationStage
from unicorn_hf.synthesis.dataset_writer import write_answers
from unicorn_hf.synthesis.preference_stage import PreferenceStage
from unicorn_hf.synthesis.usage import Prices, Usage
from unicorn_hf.synthesis.work_folder import WorkFolder
from unicorn_hf.synthesis.writers import load_writer

STAGES: dict[str, Any] = {"captions": CaptionStage, "instructions": ConversationStage, "preferences": PreferenceStage}
# The approximate tokens of an answer in each stage, for the estimate before the first call.
_EXPECTED_TOKENS = {"captions": 50, "instructions": 220, "preferences": 60}


def run_job(
    stage,
    rows,
    output,
    writer,
    config: WriterConfig,
    *,
    finish: dict,
    embed_text=None,
):
    """Ask a language model's writer for every request of `rows`, and write the dataset.

    Args:
        rows: a `datasets.Dataset` with the columns that the stage reads.
        config: the budget, and where the ranks run.
        finish: options of `write_answers`.

    Returns:
        the dataset that was written; None if it is not written yet: a job was submitted to Slurm, or files of requests
        wait to be sent.

    Raises:
        InputError: unusable input or options; only the work folder is left, and the same call resumes from it.
    """
    if output is None:
        raise InputError(f"the {writer.name} writer needs an output folder: its answers are kept beside it")
    check_new_folder(output)
    executors.check_executor(config.executor, config.tasks, "synthesis")
    check_budget(config.budget, writer)
    check_access(writer)
    work = WorkFolder(output)
    plan = {
        "kind": stage.name,
        "stage": stage.to_dict() | {"prompt_dir": None},
        "finish": finish,
        "writer_name": writer.name,
        "model": writer.model,
    }
    settings = {"prices": dataclasses.asdict(writer.prices), "writer": _writer_options(writer)}
    with contextlib.ExitStack() as stack:
        stack.enter_context(lock(output))
        work.prepare(rows, len(rows), plan, settings, stage.prompts, min(config.tasks, len(rows)))
        stage = dataclasses.replace(stage, prompt_dir=work.prompt_dir)
        if config.executor == "slurm":  # the last of its jobs takes the lock
            stack.close()
        return _run(stage, work, writer, config, embed_text)


def retry_failed(
    output: str | Path, *, config: RetryConfig | None = None, writer=None, embed_text: Callable | None = None, **options
):
    """Ask all failed requests of the run that wrote `output` again, and write `output` again.

    Args:
        output: the folder of captions, instructions or preferences; `<output>.work` must lie beside it.
        config: the options; `options` are fields of `RetryConfig` that replace those of it.
        writer: another writer object; by default the run's writer with the same settings.
        embed_text: as in the run.

    Returns:
        the dataset; None if files of requests wait to be sent.

    Raises:
        InputError: there is no such run, or no request of it failed.
    """
    config = RetryConfig.of(config, options)
    work = WorkFolder(output)
    plan = work.plan()
    stage = dataclasses.replace(STAGES[plan["kind"]].from_dict(plan["stage"]), prompt_dir=work.prompt_dir)
    if writer is None:
        options = (
            plan["writer"]
            | {"prices": Prices(**plan["prices"])}
            | ({"servers": config.servers} if config.servers else {})
        )
        writer = load_writer(plan["writer_name"], **options)
    check_budget(config.budget, writer)
    check_access(writer)
    check_new_folder(output, overwrite=True)
    with lock(work.output):
        if not work.take_back_failures(stage.per_row, prices=dataclasses.asdict(writer.prices)):
            raise InputError(f"{output}: nothing failed there")
        return _run(stage, work, writer, config, embed_text or text_encoder(config.encoder))


def preview(stage, rows, writer, num_prompts: int = 10) -> dict:
    """The requests and the cost of a job, estimated without a call.

    Returns:
        `prompts` (the messages of `num_prompts` requests, drawn from all), `requests`, and an estimate of
        `prompt_tokens`, `completion_tokens` and `cost`; the check of answers comes on top as `checking`.
    """
    rng = random.Random(0)
    positions = sorted(rng.sample(range(len(rows)), min(len(rows), 200)))
    prompts = []
    for position in positions:
        with contextlib.suppress(BadAnswer):  # this row will be rejected without a request
            prompts.append(stage.prompt(rows[position], rng.randrange(stage.per_row)).messages)
    num_bytes = sum(len(message["content"].encode()) for messages in prompts for message in messages)
    requests = len(rows) * stage.per_row
    usage = Usage(
        calls=requests,
        prompt_tokens=round(num_bytes / 4 / max(1, len(prompts)) * requests),
        completion_tokens=_EXPECTED_TOKENS[stage.name] * requests,
    )
    estimate = {**usage.to_dict(), "cost": writer.prices.cost(usage)}
    checking = {"checking": estimate} if stage.num_passes > 1 else {}  # a check needs about as many tokens as an answer
    shown = prompts[:: max(1, len(prompts) // num_prompts)][:num_prompts]
    return {"prompts": shown, "requests": requests, **estimate, **checking}


def check_budget(budget: float | None, writer) -> None:
    """Raise if there is a budget but no price, so that the budget could not be enforced."""
    if budget is not None and not (writer.prices.prompt or writer.prices.completion):
        raise InputError(f"--budget {budget:g}: needs the prices of tokens too (--price-in, --price-out)")


def check_access(writer) -> None:
    """Raise if a chat writer has no model or server, before anything is written."""
    if writer.name == "chat":
        writer.check_access()


def _run(stage, work: WorkFolder, writer, config: WriterConfig | RetryConfig, embed_text):
    require("datatrove", "synthesis")
    from unicorn_hf.synthesis.pipeline import AnswerRequests, WriteDataset

    plan = work.plan()
    tasks = len(plan["shards"])
    finish = plan["finish"] | {"embed_text": embed_text}
    if writer.name == "batch":
        if tasks > 1 or stage.num_passes > 1:
            raise InputError("the batch writer takes one task, and no second pass (--verify)")
        if files := writer.exchange(stage, work):
            print(
                f"{len(files)} files of requests: {', '.join(map(str, files))}; name their answers with --batch-answers"
            )
            return None
    else:
        work.reopen_ranks(stage.per_row)
        step = AnswerRequests(stage, writer, work, config.budget)
        executor = getattr(config, "executor", "local")  # a retry always runs on this machine
        if not executors.run_ranks(
            step,
            work.logging_dir(),
            extra="synthesis",
            executor=executor,
            tasks=tasks,
            workers=config.workers,
            options=getattr(config, "executor_options", None),
            then=WriteDataset(stage, work, **finish) if executor == "slurm" else None,
        ):
            return None
    if not write_answers(stage, work, **finish)["dead_letters"]:
        work.remove()
    return read_dataset(work.output)


def _writer_options(writer) -> dict:
    names = {item.name for item in dataclasses.fields(writer)} - {"prices", "answers"}
    return {name: getattr(writer, name) for name in sorted(names)}
