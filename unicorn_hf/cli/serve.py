"""`unicorn-hf serve`."""

from typing import Annotated

from unicorn_hf.cli import app
from unicorn_hf.cli.command import Argument, command
from unicorn_hf.errors import require
from unicorn_hf.evaluation.config import ServeConfig


@command(app, "serve", examples=["unicorn-hf serve stage-2", "unicorn-hf serve stage-2 --host 0.0.0.0 --port 8080"])
def serve_model(
    model: Annotated[str, Argument("Folder or Hub id of a trained model.")],
    config: ServeConfig,
):
    """Serve a model to OpenAI's clients, at /v1/chat/completions; messages may hold images."""
    require("fastapi", "serve")
    require("uvicorn", "serve")
    from unicorn_hf.evaluation.server import serve

    serve(model, config)
