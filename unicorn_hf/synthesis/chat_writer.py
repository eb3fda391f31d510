"""`ChatWriter`: any server that speaks OpenAI's chat completions (vLLM, SGLang, TGI, gateways), or several of them."""

import asyncio
import collections
import contextlib
import dataclasses
import email.utils
import json
import os
import random
import sys
import time
import urllib.parse
from dataclasses import dataclass, field
from typing import Any

from tqdm.auto import tqdm

from unicorn_hf.errors import InputError, require
from unicorn_hf.synthesis.completion import MAX_TOKENS, CallFailed, Completion, Prompt
from unicorn_hf.synthesis.request_options import OptionSearch, RequestOptions, check_options, first_options
from unicorn_hf.synthesis.usage import Prices, Usage

KEY_VARIABLE, ADDRESS_VARIABLE = "OPENAI_API_KEY", "OPENAI_BASE_URL"
_MAX_BODY = 1 << 20  # the most bytes of an answer; a longer one is not read to its end
_MAX_BAD_BODIES = 3  # tries of a call whose answers are not completions
_MAX_SERVER_ERRORS = 6  # tries of a call that causes server errors (500, 502, ...)
_PROBES = 37  # tries of options, if the server has accepted no request yet: enough for all of them
_LATER_PROBES = 6  # if it has accepted one: then the cause is more often the prompt
_SURE = 3  # times in a row, after which a behaviour is taken as the server's rule
_CUT_OFF = (
    "length",
    "max_tokens",
    "model_length",
)  # finish reasons of OpenAI and its followers, of gateways, of Mistral
_SILENT = 5  # tries in a row without an answer after which a server is left alone for a while
# Additive increase, multiplicative decrease: near a limit of 16 calls about 3 in 100 are refused.
_RISE, _CUT = 2.0, 0.7
_MAX_WORDS = 1000  # the most characters of a server's error message
_PASSING = (408, 409, 425, 429)
_CONFIGURATION_ERRORS = {
    401: "the server refuses the key",
    402: "the account has no credit",
    403: "the server forbids the call",
    404: "no such model or address",
}


@dataclass
class ChatWriter:
    """Sends prompts to one or several servers, as many at a time as they accept.

    A server that answers 429 or 503 gets a third fewer calls at a time, and more again with every success;
    `Retry-After` is respected.
    A server that does not answer is left alone for a while, and its calls go to the others.
    The first request finds out which options a server accepts (see `RequestOptions`); the others wait for it, and one
    line lists these options. No redirect is followed.

    Args:
        model: the model's name at the server.
        servers: base URLs such as `http://127.0.0.1:8000/v1`; if empty, OpenAI's own. The key is read from the
            environment (`OPENAI_API_KEY`) and saved nowhere.
        concurrency: the most calls at a time.
        timeout: seconds for one try of a call.
        deadline: seconds for a call with all its tries and pauses.
        temperature: the sampling temperature.
        max_tokens: the most tokens of one answer, its thought included. An answer that is cut off is asked again with
            more tokens, up to this number.
        token_limit: the name of the field that limits an answer: "max_tokens", "max_completion_tokens" or "none";
            "auto" finds out what the server accepts.
        response_format: how the answer's form is requested: "json_schema", "json_object" or "none"; "auto" finds out.
        send_temperature, send_seed: whether these are sent; None finds out what the server accepts.
        prices: the prices of a million tokens.
        extra_body: further fields of every request, such as `{"chat_template_kwargs": {"enable_thinking": False}}`.

    Raises:
        InputError: no model, or an invalid setting.
        MissingExtraError: openai is not installed.
    """

    model: str
    servers: tuple[str, ...] = ()
    concurrency: int = 64
    timeout: float = 120.0
    deadline: float = 600.0
    temperature: float = 1.0
    max_tokens: int = MAX_TOKENS
    token_limit: str = "auto"
    response_format: str = "auto"
    send_temperature: bool | None = None
    send_seed: bool | None = None
    prices: Prices = field(default_factory=Prices)
    extra_body: dict = field(default_factory=dict)

    name = "chat"

    def __post_init__(self):
        require("openai", "synthesis")
        require("aiohttp", "synthesis")
        if not self.model:
            raise InputError("the chat writer needs the name of a model; name one (--model)")
        self.model = str(self.model)
        if self.concurrency < 1 or self.timeout <= 0 or self.deadline <= 0:
            raise InputError("concurrency, timeout and deadline must be positive")
        if self.max_tokens < 1:
            raise InputError(f"max_tokens is {self.max_tokens}; expected 1 or more")
        self._fixed = check_options(self.token_limit, self.response_format, self.send_temperature, self.send_seed)

    def check_access(self) -> None:
        """Raise `InputError` if there is neither an address nor a key, or if an address is not valid."""
        if not (self.servers or os.environ.get(KEY_VARIABLE) or os.environ.get(ADDRESS_VARIABLE)):
            raise InputError(
                "the chat writer knows no server: name its address (--base-url http://127.0.0.1:8000/v1), or set "
                f"{KEY_VARIABLE} to call OpenAI's"
            )
        for url in self.servers or filter(None, [os.environ.get(ADDRESS_VARIABLE)]):
            if not _is_address(url):
                raise InputError(f"{url!r} is no address of a server; expected one such as http://127.0.0.1:8000/v1")

    async def __aenter__(self):
        import openai

        self.check_access()
        self._key = os.environ.get(KEY_VARIABLE) or "none"  # a local server needs no key
        self._servers = [
            _Server(
                openai.AsyncOpenAI(
                    base_url=url,
                    api_key=self._key,
                    max_retries=0,
                    # prompts and key go to the named address only
                    http_client=openai.DefaultAioHttpClient(follow_redirects=False),
                ),
                self.concurrency,
                first_options(self._fixed),
            )
            for url in (self.servers or (None,))
        ]
        self._waiting = collections.deque()
        self._served_at = time.monotonic()
        return self

    async def __aexit__(self, *exception):
        for server in self._servers:
            await server.client.close()
        del self._servers, self._key

    async def complete(self, prompt: Prompt) -> Completion:
        """The answer to a prompt.

        Raises:
            CallFailed: no usable answer within the deadline.
            InputError: no call can succeed: the key, the account, the address or the model is wrong.
        """
        usage = Usage()
        end = time.monotonic() + self.deadline
        reason, detail, pause = "deadline", "no server took the call", 0.0
        bad_bodies = server_errors = 0
        own_searches: dict[_Server, OptionSearch] = {}  # of this call, where the server was used to take its options
        first_words = None  # the message of the first refusal
        for attempt in range(1 << 10):
            if attempt:
                usage.retries += 1
            left = end - time.monotonic()
            if left <= pause:
                break
            if pause:
                await asyncio.sleep(pause)
            server = await self._slot(end if attempt else None)
            if server is None:
                break
            started = time.monotonic()
            if not attempt:
                end = started + self.deadline
            try:
                limit = max(0.01, min(self.timeout, end - started))
                search = own_searches.get(server) if server.proven else server.search
                options = search.options if search else server.options
                completion = await asyncio.wait_for(self._send(server, prompt, options), limit)
                server.succeeded(self.concurrency)
                server.took(options)
                self._served_at = time.monotonic()
                usage.add(completion.usage)
                return dataclasses.replace(completion, usage=usage)
            except BadBody as error:
                server.succeeded(self.concurrency)
                server.took(options)
                usage.calls += 1
                reason, detail, pause = error.reason, str(error), 0.0
                bad_bodies += 1
                if bad_bodies == _MAX_BAD_BODIES:
                    break
            except Exception as error:  # transports raise errors of many types; each means "no answer"
                if not isinstance(error, asyncio.TimeoutError) or limit == self.timeout:
                    reason, detail = self._explain(error)  # an error by our own deadline explains nothing
                status: Any = getattr(error, "status_code", None)  # an int, if the server has answered
                response: Any = getattr(error, "response", None)
                if status in _CONFIGURATION_ERRORS:
                    raise InputError(f"{server.url}: {_CONFIGURATION_ERRORS[status]} ({detail})") from None
                if status is not None and 300 <= status < 400:
                    place = response.headers.get("location", "another address")
                    raise InputError(
                        f"{server.url}: redirects to {place[:200]}, and no redirect is followed; if the "
                        "prompts may go there, name that address (--base-url)"
                    ) from None
                server_errors += status is not None and status >= 500 and status != 503
                if server.refuses(status, detail, options):
                    first_words, pause = first_words or (reason, detail), 0.0
                    if search is None and options != server.options:  # another call has found the options meanwhile
                        continue
                    if search is None and server.proven:
                        search = own_searches[server] = OptionSearch(options, self._fixed, _LATER_PROBES)
                    elif search is None:
                        search = server.search = OptionSearch(options, self._fixed, server.probes)
                        if status >= 500 and not options.named_in(detail) and search.refused(detail):
                            # `transformers serve` fails without a message if a chat template has no system turn.
                            search.options = dataclasses.replace(options, system_role=False)
                            continue
                    if search.refused(detail):
                        continue
                    reason, detail = first_words
                    server.turned_away(detail)
                    break
                if status is None or status in (*_PASSING, 503):  # such an error says nothing about the options
                    server.open = True
                if server_errors == _MAX_SERVER_ERRORS:
                    break
                longest = min(30.0, self.deadline / 10)
                pause = server.failed(started, status, _retry_after(error), attempt, longest)
            finally:
                server.in_flight -= 1
                self._wake()
        raise CallFailed(reason, detail, usage)

    async def _send(self, server: "_Server", prompt: Prompt, options: RequestOptions) -> Completion:
        """One try.

        Raises:
            BadBody: the body is not a chat completion. The errors of openai are not caught here.
        """
        request = server.client.chat.completions.with_streaming_response.create(
            model=self.model,
            messages=options.messages(prompt),
            extra_body={**options.body(prompt, self.temperature), **self.extra_body},
        )
        body = bytearray()
        async with request as response:  # read by hand, so that an endless answer ends
            async for chunk in response.iter_bytes():
                body += chunk
                if len(body) > _MAX_BODY:
                    raise BadBody("answer_too_large", f"the answer is larger than {_MAX_BODY} bytes")
        return read_completion(bytes(body), prompt)

    async def _slot(self, end: float | None) -> "_Server | None":
        """The server with the most room, as soon as one has room; None if there is none in time.

        A new call has no `end` yet: it waits as long as other calls are answered. A call that has begun goes first.
        """
        began = time.monotonic()
        while True:
            now = time.monotonic()
            limit = end or max(began, self._served_at) + self.deadline
            if now >= limit:
                return None
            awake = [server for server in self._servers if server.paused_until <= now]
            free = [server for server in awake if server.room > 0]
            if free:
                server = min(free, key=lambda server: server.in_flight / server.limit)
                server.in_flight += 1
                return server
            paused = [server.paused_until for server in self._servers if server not in awake]
            waiter = asyncio.get_running_loop().create_future()
            (self._waiting.appendleft if end else self._waiting.append)(waiter)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(waiter, max(0.001, min([limit, *paused]) - now))

    def _wake(self) -> None:
        room = sum(max(0, server.room) for server in self._servers)
        while self._waiting and room > 0:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                room -= 1

    def _explain(self, error: Exception) -> tuple[str, str]:
        """(reason, detail) of a failed try: the server's message, if it sent one; the key never appears in it."""
        import openai

        if isinstance(error, openai.APIStatusError):
            reason, detail = f"http_{error.status_code}", " ".join(error.response.text.split()) or str(error)
        elif isinstance(error, asyncio.TimeoutError):
            reason, detail = "timeout", f"no answer within {self.timeout:g} s"
        else:
            # openai reports a lost connection as a timeout; the error's cause is correct
            reason, detail = "connection", f"{type(error).__name__}: {error.__cause__ or error}"
        return reason, (detail.replace(self._key, "***") if len(self._key) > 6 else detail)[:_MAX_WORDS]


def _is_address(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except (ValueError, AttributeError, TypeError):  # a port that is not a number
        return False


def read_completion(body: bytes, prompt: Prompt) -> Completion:
    """The answer in a chat completion, and what it cost; if the server does not report it, four bytes count as a token.

    A thought that the server keeps apart (`reasoning_content`, `reasoning`, or a part of the content) is no answer.

    Raises:
        BadBody: the bytes are not UTF-8, not JSON, or not a chat completion.
    """
    try:
        completion = json.loads(body.decode("utf-8"))
        if not completion.get("choices") and completion.get("error"):  # some servers send errors with status 200
            raise BadBody("broken_body", f"the server answered with an error: {completion['error']}"[:500])
        choice = completion["choices"][0]
        message = choice["message"]
        text = _content_text(message.get("content")) or _content_text(message.get("refusal"))
        thought = _content_text(message.get("reasoning_content")) or _content_text(message.get("reasoning"))
        tokens = completion.get("usage") or {}
        usage = Usage(
            calls=1,
            prompt_tokens=_count(tokens, "prompt_tokens", sum(len(m["content"]) for m in prompt.messages) // 4),
            completion_tokens=_count(tokens, "completion_tokens", (len(text) + len(thought)) // 4),
        )
        cut_off = str(choice.get("finish_reason")).lower() in _CUT_OFF
    except UnicodeDecodeError as error:
        raise BadBody("invalid_utf8", str(error)) from None
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise BadBody("broken_body", f"{type(error).__name__}: {error}") from None
    if thought and not text.strip():
        text = f"<think>{thought}"  # in the format of a model: a thought without an answer
    return Completion(text, usage, cut_off)


def _count(tokens: dict, name: str, estimate: int) -> int:
    return estimate if tokens.get(name) is None else int(tokens[name])


def _content_text(content: str | list | None) -> str:
    """The text of a message's content, without thoughts and images."""
    if isinstance(content, list):
        return "".join(part["text"] or "" for part in content if part.get("type", "text") in ("text", "output_text"))
    if not isinstance(content, str | None):
        raise TypeError(f"the content is a {type(content).__name__}")
    return content or ""


class BadBody(Exception):
    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


class _Server:
    """One server: how many calls and which options it accepts, and until when it is left alone."""

    def __init__(self, client, limit: int, options: RequestOptions):
        self.client, self.url = client, str(client.base_url)
        self.limit = float(limit)
        self.in_flight = 0
        self.paused_until = 0.0
        self.options = options
        self.proven = False  # whether it has accepted a request with these options
        self.search: OptionSearch | None = None  # for its options, until it has accepted a request
        self.probes = _PROBES
        self.open = False  # whether more than one call may run; at first, one call finds the options
        self._changed = self._turned_away = 0  # times in a row
        self._broken = 0  # the number of server errors
        self._cut_at = 0.0
        self._failures = 0

    @property
    def room(self) -> int:
        """The number of calls that may be added now."""
        return (int(self.limit) if self.open else 1) - self.in_flight

    def took(self, options: RequestOptions) -> None:
        """Note that a request with `options` succeeded."""
        self.open, self._turned_away = True, 0
        self._changed = 0 if options == self.options else self._changed + 1
        if not self.proven or self._changed == _SURE:
            self.options, self.proven, self._changed = options, True, 0
            tqdm.write(f"{self.url}: takes {options}", file=sys.stderr)

    def refuses(self, status: int | None, words: str, options: RequestOptions) -> bool:
        """Whether a failed try shows that the server does not accept a request like this."""
        if status is None or status in (*_PASSING, 503):
            return False
        self._broken += status >= 500
        # Some servers fail because of an option. Without a sign of that, a broken server is more likely.
        return status < 500 or bool(options.named_in(words)) or (not self.proven and self._broken >= _SURE)

    def turned_away(self, words: str) -> None:
        """Note that a request was refused with all tried options."""
        self._turned_away += 1
        self.search, self.probes = None, _LATER_PROBES
        if not self.proven and self._turned_away == _SURE:
            raise InputError(f"{self.url}: refuses every request, whatever option is left out; it says: {words}")

    def succeeded(self, most: int) -> None:
        self._failures = 0
        self.limit = min(most, self.limit + _RISE / self.limit)

    def failed(
        self, started: float, status: int | None, retry_after: float | None, attempt: int, longest: float
    ) -> float:
        """Note a failed try that began at `started`; returns the seconds that the call should wait.

        A pause is longer than `longest` only if the server asks for it.
        """
        now = time.monotonic()
        self._failures += 1
        if status in (429, 503) and started >= self._cut_at:  # once for all calls that ran at the same time
            self.limit, self._cut_at = max(1.0, self.limit * _CUT), now
        if retry_after is not None:
            self.paused_until = max(self.paused_until, now + retry_after * random.uniform(1, 1.1))
            return 0.0
        if status is None and self._failures >= _SILENT:  # the server does not answer
            self.paused_until = now + min(longest, 2.0 ** (self._failures - _SILENT)) * random.uniform(0.5, 1)
            return 0.0
        return min(longest, 0.25 * 2**attempt) * random.uniform(0.5, 1)


def _retry_after(error: Exception) -> float | None:
    """The seconds to wait by a `Retry-After` header, which holds seconds or a date."""
    response = getattr(error, "response", None)
    value = response.headers.get("retry-after") if response is not None else None
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        date = email.utils.parsedate_to_datetime(value) if email.utils.parsedate(value) else None
        return max(0.0, date.timestamp() - time.time()) if date else None
