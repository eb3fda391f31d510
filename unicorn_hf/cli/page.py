"""`unicorn-hf app`."""

from typing import Annotated

from unicorn_hf.cli import app
from unicorn_hf.cli.command import Argument, Flag, command
from unicorn_hf.evaluation.config import AppConfig


@command(
    app,
    "app",
    examples=["unicorn-hf app stage-2", "unicorn-hf app stage-2 --captions aligned --host 0.0.0.0 --port 8080"],
)
def serve(
    model: Annotated[str, Argument("Folder or Hub id of a trained model.")],
    config: AppConfig,
    captions: Annotated[
        str | None,
        Flag("A dataset with caption and image_embeds or text_embeds: show the captions nearest to an image."),
    ] = None,
):
    """Serve a web page to ask a model about images; it also shows the nearest captions and the modality gap."""
    from unicorn_hf.evaluation.app import serve_page

    serve_page(model, captions=captions, config=config)
