"""`unicorn-hf retry-failed`."""

from pathlib import Path
from typing import Annotated

from unicorn_hf.cli import app
from unicorn_hf.cli.command import Argument, command
from unicorn_hf.cli.synthesis_summary import print_summary
from unicorn_hf.synthesis.config import RetryConfig


@command(
    app,
    "retry-failed",
    examples=[
        "unicorn-hf retry-failed captions",
        "unicorn-hf retry-failed captions --base-url http://127.0.0.1:8001/v1 --budget 20",
    ],
)
def retry_failed(
    output: Annotated[Path, Argument("What `captions`, `instructions` or `preferences` wrote, with failures.")],
    config: RetryConfig,
):
    """Ask again for what failed in `captions`, `instructions` or `preferences`, and write the dataset anew."""
    from unicorn_hf.synthesis.job import retry_failed

    dataset = retry_failed(output, config=config)
    print_summary(output, dataset, "rows", None)
