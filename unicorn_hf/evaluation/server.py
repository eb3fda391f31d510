"""Serve a trained model by OpenAI's chat completions API: messages with images in, the answer out."""

import itertools
import json
import queue
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Literal

import pydantic
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from unicorn_hf.data.markup import Marks, marks_of, without_marks
from unicorn_hf.errors import InputError
from unicorn_hf.evaluation.answering import load_trained_model, load_transfer
from unicorn_hf.evaluation.config import ServeConfig
from unicorn_hf.evaluation.images import (
    answer_of,
    encode_images,
    find_image_encoder,
    read_image,
    user_message,
    write_reply,
)
from unicorn_hf.evaluation.replies import until
from unicorn_hf.system_turn import has_system_role, system_to_user


class Message(pydantic.BaseModel):
    role: Literal["system", "user", "assistant"]
    content: str | list[dict]


class ChatRequest(pydantic.BaseModel):
    """The supported fields of OpenAI's request; a request with any other field is refused."""

    model_config = pydantic.ConfigDict(extra="forbid")

    model: str
    messages: list[Message] = pydantic.Field(min_length=1)
    max_tokens: int | None = pydantic.Field(None, ge=1)
    max_completion_tokens: int | None = pydantic.Field(None, ge=1)
    temperature: float | None = pydantic.Field(None, ge=0)
    top_p: float | None = pydantic.Field(None, gt=0, le=1)
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: dict | None = None
    n: Literal[1] = 1
    user: str | None = None


class ChatModel:
    """A model that writes one reply at a time.

    Args:
        name: folder or Hub id of a trained model.
    """

    def __init__(self, name, config: ServeConfig):
        self.name, self.config, self.lock = str(name), config, threading.Lock()
        self.transfer = load_transfer(config.transfer)
        self.model, self.processor = load_trained_model(name, config)
        self.encoder = find_image_encoder(self.model, config.encoder)
        self.marks = marks_of(self.processor.tokenizer)
        self.has_system = has_system_role(lambda chat: self.processor.apply_chat_template(chat, tokenize=False))

    def reply(self, request: ChatRequest, show=None) -> tuple[str, str, dict]:
        """The answer, why it ended (`stop` or `length`), and the token counts."""
        chat, images = read_messages(request.messages, self.marks, self.config.allow_private_addresses)
        chat = chat if self.has_system else system_to_user(chat)
        options = {"max_new_tokens": request.max_completion_tokens or request.max_tokens or self.config.max_new_tokens}
        if request.temperature and request.top_p:
            options["top_p"] = request.top_p
        with self.lock:
            vectors = encode_images(self.model, self.processor, images, encoder=self.encoder, transfer=self.transfer)
            reply, read, written = write_reply(
                self.model, self.processor, chat, vectors, temperature=request.temperature or 0, show=show, **options
            )
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        # Not by `stop_strings`, which fails on tokenizers that cannot write some letters.
        whole = answer_of(reply, written)
        answer = until(whole, request.stop)
        ended = "length" if answer == whole and written == options["max_new_tokens"] else "stop"
        return answer, ended, usage

    def stream(self, request: ChatRequest) -> Iterator[dict]:
        """The answer piece by piece, each as a `choice`; then the token counts, if requested."""
        written: queue.SimpleQueue = queue.SimpleQueue()
        # With stop strings, send the answer only when it is complete: half a stop string must not be sent.
        show = None if request.stop else written.put

        def write():
            try:
                written.put(self.reply(request, show))
            except Exception as error:  # raised again by the reading thread
                written.put(error)

        threading.Thread(target=write, daemon=True).start()
        sent = ""
        while isinstance(part := written.get(), str):
            if part.startswith(sent):
                yield {"choices": [_choice("delta", part[len(sent) :])]}
                sent = part
        if isinstance(part, InputError):
            yield {"error": _error(str(part))}
            return
        if isinstance(part, Exception):
            raise part
        answer, ended, usage = part
        yield {"choices": [_choice("delta", answer[len(sent) :] if answer.startswith(sent) else "", ended)]}
        if (request.stream_options or {}).get("include_usage"):
            yield {"choices": [], "usage": usage}


def make_server(model, *, config: ServeConfig | None = None, **options) -> FastAPI:
    """The application: `POST /v1/chat/completions`, `GET /v1/models`, `GET /health`.

    Args:
        model: folder or Hub id of a trained model. Without an image tower, its encoder encodes the images.
        config: the options; `options` replace single fields of it.

    Raises:
        InputError: the model, its encoder or an option cannot be used.
    """
    chat_model = ChatModel(model, ServeConfig.of(config, options))
    server = FastAPI(title="Unicorn")

    @server.post("/v1/chat/completions")
    def complete(request: ChatRequest):
        about = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": chat_model.name}
        if request.stream:
            about["object"] = "chat.completion.chunk"
            parts = itertools.chain((json.dumps(about | part) for part in chat_model.stream(request)), ["[DONE]"])
            return StreamingResponse((f"data: {part}\n\n" for part in parts), media_type="text/event-stream")
        answer, ended, usage = chat_model.reply(request)
        choices = [_choice("message", answer, ended)]
        return about | {"object": "chat.completion", "choices": choices, "usage": usage}

    @server.get("/v1/models")
    def models():
        return {
            "object": "list",
            "data": [{"id": chat_model.name, "object": "model", "owned_by": "user", "created": 0}],
        }

    @server.get("/health")
    def health():
        return {"status": "ok"}

    @server.exception_handler(InputError)
    def refuse(_: Request, error: InputError):
        return JSONResponse({"error": _error(str(error))}, 400)

    @server.exception_handler(RequestValidationError)
    def refuse_fields(_: Request, error: RequestValidationError):
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"][1:]))
        if first["type"] == "json_invalid":
            message, field = f"The request's body is not JSON: {first['ctx']['error']} at character {field}", None
        elif not field:
            message = "The request's body is not a JSON object, or not sent as application/json"
        else:
            message = f"{field}: {first['msg']}"
        return JSONResponse({"error": _error(message, field or None)}, 400)

    @server.exception_handler(HTTPException)
    def refuse_request(request: Request, error: HTTPException):
        message = f"{request.method} {request.url.path}: {error.detail}"
        if error.status_code == 400:  # FastAPI could not parse the body, and does not say why
            message = "The request's body is not JSON in UTF-8, or is nested too deeply"
        return JSONResponse({"error": _error(message)}, error.status_code, error.headers)

    return server


def serve(model, config: ServeConfig) -> None:
    """Serve a model until the process is stopped; see `make_server`."""
    uvicorn.run(make_server(model, config=config), host=config.host, port=config.port)


def read_messages(
    messages: list[Message], marks: Marks, allow_private_addresses: bool = False
) -> tuple[list[dict], list]:
    """The chat, with the images of each turn before its text as in stage 2, and the list of images.

    Marks of the tokenizer (`marks`) in a text become plain words.

    Raises:
        InputError: a part has an unknown type, a text is not valid Unicode, or an image is neither a data URL nor a web
            address, or cannot be read.
    """
    chat, images = [], []
    for message in messages:
        parts = message.content
        texts, num_images = [], len(images)
        for part in [{"type": "text", "text": parts}] if isinstance(parts, str) else parts:
            if part.get("type") == "text" and isinstance(part.get("text"), str):
                if any("\ud800" <= character <= "\udfff" for character in part["text"]):
                    raise InputError(f"the text of a message is {part['text']!r:.100}, which is not valid Unicode")
                texts.append(without_marks(part["text"], marks))
            elif part.get("type") == "image_url":
                url = part.get("image_url")
                url = url.get("url") if isinstance(url, dict) else url
                if not isinstance(url, str) or not url.startswith(("data:", "http://", "https://")):
                    raise InputError(f"image_url is {url!r:.100}; expected a data URL, or one of http or https")
                images.append(read_image(url, allow_private_addresses=allow_private_addresses))
            else:
                raise InputError(f"a part of a message is {part!r:.100}; expected the type 'text' or 'image_url'")
        turn = user_message("\n".join(texts), len(images) - num_images, marks)
        chat.append({**turn, "role": message.role})
    return chat, images


def _choice(key: str, content: str, ended: str | None = None) -> dict:
    return {"index": 0, key: {"role": "assistant", "content": content}, "finish_reason": ended}


def _error(message: str, field: str | None = None) -> dict:
    return {"message": " ".join(message.split()), "type": "invalid_request_error", "param": field, "code": None}
