"""What `captions`, `instructions`, `preferences` and `retry-failed` print at their end."""

import json
from pathlib import Path

import typer

from unicorn_hf.cli.command import print_next


def print_preview(estimate: dict) -> None:
    """The prompts and costs of a dry run (see `synthesis.job.preview`)."""
    for number, messages in enumerate(estimate["prompts"], 1):
        print(f"--- prompt {number}")
        for message in messages:
            print(f"[{message['role']}]\n{message['content']}")
    if "checking" in estimate:
        check = estimate["checking"]
        print(
            f"--no-verify saves the check of every answer, which comes on top: about {check['prompt_tokens']:,} "
            f"tokens in and {check['completion_tokens']:,} out, {check['cost']:,.2f}"
        )
    print(
        f"{estimate['requests']:,} requests, about {estimate['prompt_tokens']:,} tokens in and "
        f"{estimate['completion_tokens']:,} out, {estimate['cost']:,.2f} at these prices"
    )


def print_summary(output: Path, dataset, rows: str, next_command: str | None) -> None:
    """One line for a dataset that is there, and what comes next; status 3 where some rows failed."""
    if dataset is None:  # Slurm has the job, or files of requests wait to be sent
        return
    path = output / "summary.json"
    if not path.is_file():  # the grammar writer has nothing to sum up
        print(f"{output}: {len(dataset):,} {rows}")
        print_next(next_command)
        return
    summary = json.loads(path.read_text(encoding="utf-8"))
    rejected, failed = (sum(summary[name].values()) for name in ("rejected", "dead_letters"))
    print(
        f"{output}: {summary['rows']:,} rows of {summary['requested']:,} requests, {rejected:,} rejected, {failed:,} "
        f"failed; {_spent(summary)}"
    )
    if "checking" in summary:
        print(f"{output}: of that, checking the answers against their captions took {_spent(summary['checking'])}")
    if failed:
        print(f"{output}/dead_letters.jsonl names the failures; ask again with: unicorn-hf retry-failed {output}")
        raise typer.Exit(3)
    print_next(next_command)


def _spent(summary: dict) -> str:
    from unicorn_hf.synthesis.usage import money

    tokens = summary["usage"]["prompt_tokens"] + summary["usage"]["completion_tokens"]
    return f"{tokens:,} tokens, {money(summary['cost'])} spent"
