"""`unicorn-hf generate`."""

from typing import Annotated

from unicorn_hf.cli import app
from unicorn_hf.cli.command import Argument, Flag, command
from unicorn_hf.evaluation.config import GenerateConfig


@command(
    app,
    "generate",
    examples=[
        'unicorn-hf generate stage-2 "What is this?" --image photo.png',
        'unicorn-hf generate stage-2 "What differs?" --image a.png --image b.png --temperature 0.7',
    ],
)
def generate(
    model: Annotated[str, Argument("Folder or Hub id of a trained model.")],
    question: Annotated[str, Argument("In the user's words; the model's chat template is applied.")],
    config: GenerateConfig,
    image: Annotated[list[str] | None, Flag("An image's file or URL; may be repeated.")] = None,
):
    """Ask a model about images, or about none; the answer is printed as it is written."""
    from unicorn_hf.evaluation.answering import ask

    printed = ""

    def show(written: str) -> None:
        nonlocal printed
        if written.startswith(printed):
            print(written[len(printed) :], end="", flush=True)
        else:  # what looked like the answer was a thought, whose end shows it
            print(f"\n\n{written}", end="", flush=True)
        printed = written

    try:
        ask(model, question, image or [], config=config, show=show)
    finally:
        if printed:
            print()
