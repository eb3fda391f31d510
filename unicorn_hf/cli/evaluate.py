"""`unicorn-hf evaluate`."""

from pathlib import Path
from typing import Annotated

from unicorn_hf.cli import app
from unicorn_hf.cli.command import Argument, Flag, command
from unicorn_hf.evaluation.config import EvaluateConfig


@command(
    app,
    "evaluate",
    examples=[
        "unicorn-hf evaluate stage-2 questions/ -o report",
        "unicorn-hf evaluate stage-2 lmms-lab/POPE --split test --task yes-no -o pope",
    ],
)
def evaluate(
    model: Annotated[str, Argument("Folder or Hub id of a trained model.")],
    data: Annotated[str, Argument("A dataset with questions, and images or their image_embeds.")],
    config: EvaluateConfig,
    output: Annotated[
        Path | None, Flag("A folder to write: JSON, every answer, an HTML report.", "--output", "-o")
    ] = None,
):
    """Ask a model questions about images and score its answers, beside those it gives without the images."""
    from unicorn_hf.evaluation.evaluation import evaluate

    print(evaluate(model, data, output, config=config))
    if output is not None:
        print(output / "report.html")
