"""Servers that refuse some fields of a request, in the words of the real ones, in a thread of the test's process."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from llm_server import answer, body


def openai_error(message: str, param: str | None = None, code: str | None = None) -> dict:
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


def o_series(request: dict) -> tuple[int, dict] | None:
    if "max_tokens" in request:
        words = (
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
        )
        return 400, openai_error(words, "max_tokens", "unsupported_parameter")
    if request.get("temperature", 1) != 1:
        words = (
            f"Unsupported value: 'temperature' does not support {request['temperature']} with this model. "
            "Only the default (1) value is supported."
        )
        return 400, openai_error(words, "temperature", "unsupported_value")


def groq(request: dict) -> tuple[int, dict] | None:
    if request.get("response_format", {}).get("type") == "json_schema":
        words = (
            "This model does not support response format `json_schema`. See supported models at https://console.groq"
        )
        return 400, {"error": {"message": words, "type": "invalid_request_error"}}


def xgrammar(request: dict) -> tuple[int, dict] | None:
    if request.get("response_format", {}).get("type") == "json_schema":
        words = "The provided JSON schema contains features not supported by xgrammar."
        return 400, {"object": "error", "message": words, "type": "BadRequestError", "param": None, "code": 400}


def vllm(request: dict) -> tuple[int, dict] | None:
    """A strict version that knows no seed, and answers as FastAPI does."""
    unknown = [name for name in ("seed", "response_format") if name in request]
    if unknown:
        found = [
            {"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted"}
            for name in unknown
        ]
        return 422, {"detail": found}


def llama_cpp_python(request: dict) -> tuple[int, dict] | None:
    if request.get("response_format", {}).get("type") == "json_schema":
        words = (
            "[{'type': 'literal_error', 'loc': ('body', 'response_format', 'type'), 'msg': \"Input should be 'text' or "
            "'json_object'\", 'input': 'json_schema', 'ctx': {'expected': \"'text' or 'json_object'\"}}]"
        )
        return 500, {"error": {"message": words, "type": "internal_server_error", "param": None, "code": None}}


def only_param(request: dict) -> tuple[int, dict] | None:
    for name in ("response_format", "seed"):
        if name in request:
            return 400, openai_error("Bad request", name)


def speechless(request: dict) -> tuple[int, dict] | None:
    """Two fields are refused, and nothing is said."""
    if "max_tokens" in request or "temperature" in request:
        return 400, {}


def broken_by_a_system_turn(request: dict) -> tuple[int, dict] | None:
    """`transformers serve` over Gemma's template, which raises: the client is told nothing."""
    if request["messages"][0]["role"] == "system":
        return 500, {"detail": "Internal Server Error"}
    return None


def broken_by_a_schema(request: dict) -> tuple[int, dict] | None:
    if request.get("response_format", {}).get("type") == "json_schema":
        return 500, {"error": "Internal Server Error"}


class PickyServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, refuse, reply=None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.refuse, self.requests, self.lock = refuse, [], threading.Lock()
        self.reply = reply or (lambda request: body(answer(_with_schema(request))))
        self.base_url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def taken(self) -> list[dict]:
        """The requests that were answered."""
        return [request for request, status in self.requests if status == 200]


@contextlib.contextmanager
def serving(refuse=lambda request: None, reply=None):
    server = PickyServer(refuse, reply)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def _with_schema(request: dict) -> dict:
    """The request as one with the schema, which the prompt tells too."""
    name = "CaptionAnswer" if '{"caption"' in request["messages"][0]["content"] else "ConversationAnswer"
    return {**request, "response_format": {"json_schema": {"name": name}}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        refusal = self.server.refuse(request)
        status, reply, *headers = refusal or (200, self.server.reply(request))
        with self.server.lock:
            self.server.requests.append((request, status))
        raw = json.dumps(reply).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(raw), **dict(*headers)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *arguments):
        """Nothing is logged."""
