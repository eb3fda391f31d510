"""`unicorn-hf generate`."""

import sys
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
    image: Annotated[list[str] | None, Flag("The file or URL of an image; may be repeated.")] = None,
):
    """Ask a model a question, with or without images; the answer is printed while the model writes it."""
    from unicorn_hf.evaluation.answering import ask

    printed = ""

    def show(written: str) -> None:
        nonlocal printed
        if written.startswith(printed):
            print(written[len(printed) :], end="", flush=True)
        else:  # the text so far was the model's reasoning; only its end mark shows that
            print(f"\n\n{written}", end="", flush=True)
        printed = written

    try:
        answer = ask(model, question, image or [], config=config, show=show)
    finally:
        if printed:
            print()
    if not answer:
        print("The model's answer is empty.", file=sys.stderr)
