"""An OpenAI-compatible server for tests: schema-valid answers that depend on the request only, and faults on demand.

    python llm_server.py --port-file FILE [--faults] [--latency SECONDS] [--log FILE] [--max-in-flight N]

It ends by itself after `--lifetime` seconds.
"""

import argparse
import asyncio
import collections
import hashlib
import json
import os
import random
import re

from aiohttp import web

FAULTS = (
    "429 with Retry-After", "429", "500", "503", "reset", "hang", "truncated JSON", "wrong schema", "empty answer",
    "2 MB answer", "invalid UTF-8", "truncated body",
)  # fmt: skip
WORDS = """
rusty wooden tall narrow bright faded striped glossy mossy crooked woven painted dusty frosted carved
bench fence bicycle lamp barrel kettle window ladder basket curtain statue bridge tent piano mirror cart tower boat
on a pier|in a courtyard|near a canal|behind a market stall|on a hilltop|in a long hallway|by a greenhouse
under a pale morning sky|in soft window light|at dusk|in hard midday sun|lit by a single lamp|in thin fog
""".strip().split("\n")
ADJECTIVES, NOUNS = WORDS[0].split(), WORDS[1].split()
PLACES, LIGHTS = WORDS[2].split("|"), WORDS[3].split("|")


def draw(text: str) -> random.Random:
    return random.Random(hashlib.sha256(text.encode()).digest())


def caption(user: str, rng: random.Random) -> str:
    seed = json.loads(re.search(r'^Seed: (".*")$', user, re.MULTILINE)[1])
    first, second = (f"a {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}" for _ in range(2))
    light, place = rng.choice(LIGHTS), rng.choice(PLACES)
    parts = [f"{seed} beside {first}", f"{second} stands {place}", light]
    rng.shuffle(parts)
    return f"{', '.join(parts).capitalize()}."


def fact(question: str) -> str:
    return draw(question).choice(NOUNS)


def answer(request: dict) -> str:
    """A good answer to a request; it depends on the first user turn only."""
    user = next(message["content"] for message in request["messages"] if message["role"] == "user")
    rng = draw(user)
    name = request["response_format"]["json_schema"]["name"]
    if name == "CaptionAnswer":
        return json.dumps({"caption": caption(user, rng)})
    if name == "VerificationAnswer":
        questions = [json.loads(text) for text in re.findall(r'^Question \d+: (".*")$', user, re.MULTILINE)]
        disagree = rng.random() < 0.2
        return json.dumps(
            {"answers": ["nothing of it" if disagree else fact(q.split("(")[0].strip()) for q in questions]}
        )
    if name == "PreferenceAnswer":
        question = f"Which thing is next to the {rng.choice(ADJECTIVES)} wall?"
        right = fact(question)
        wrong = rng.choice([noun for noun in NOUNS if noun != right])
        return json.dumps({"question": question, "answer": right, "wrong_answer": wrong})
    turns = []
    for number in range(int(re.search(r"Number of questions: (\d+)", user)[1])):
        question = f"Which thing is in place {number + 1} next to the {rng.choice(ADJECTIVES)} wall?"
        turn = {"question": question, "answer": fact(question)}
        if name == "MultipleChoiceAnswer":
            turn["options"] = [turn["answer"], *rng.sample([noun for noun in NOUNS if noun != turn["answer"]], 3)]
        turns.append(turn)
    return json.dumps({"turns": turns})


class Server:
    def __init__(self, options):
        self.options = options
        self.seen = collections.Counter()
        self.in_flight = self.most_in_flight = self.calls = 0

    async def complete(self, http_request: web.Request) -> web.StreamResponse:
        self.calls += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self.respond(http_request, json.loads(await http_request.read()))
        finally:
            self.in_flight -= 1

    async def respond(self, http_request: web.Request, request: dict) -> web.StreamResponse:
        if self.options.key and http_request.headers.get("Authorization") != f"Bearer {self.options.key}":
            sent = http_request.headers.get("Authorization", "")
            return web.json_response({"error": {"message": f"wrong key: {sent}"}}, status=401)
        users = [message["content"] for message in request["messages"] if message["role"] == "user"]
        key = hashlib.sha256(users[0].encode()).hexdigest()[:16]
        self.seen[key] += 1
        if self.options.log:
            with open(self.options.log, "a", encoding="utf-8") as log:
                log.write(key + "\n")
        if self.options.latency:
            await asyncio.sleep(self.options.latency * draw(key).uniform(0.5, 1.5))
        if self.options.max_in_flight and self.in_flight > self.options.max_in_flight:
            return web.json_response({"error": {"message": "slow down"}}, status=429)
        text = answer(request)
        if self.options.faults:
            rng = draw("fault " + key)
            fault, chance = rng.choice(FAULTS), rng.random()
            # Half of the requests fail at least once, and 5 of 100 every time.
            if (chance < 0.05) or (chance < 0.5 and self.seen[key] == 1):
                response = await self.fail(http_request, fault, text)
                if isinstance(response, web.StreamResponse):
                    return response
                text = response
        return web.json_response(body(text))

    async def fail(self, http_request: web.Request, fault: str, text: str) -> web.StreamResponse | str:
        """A response that carries the fault, or a text with it."""
        if fault[:3].isdigit() and not fault.startswith("2 MB"):
            headers = {"Retry-After": "0.05"} if "Retry-After" in fault else {}
            sent = http_request.headers.get("Authorization", "")
            return web.json_response(
                {"error": {"message": f"{fault} for {sent}"}}, status=int(fault[:3]), headers=headers
            )
        if fault == "reset":
            http_request.transport.abort()
            return web.Response()
        if fault == "hang":
            await asyncio.sleep(600)
        raw = json.dumps(body(text), ensure_ascii=False).encode()
        if fault == "invalid UTF-8":
            return web.Response(body=raw.replace(b'"m"', b'"\xff\xfe"'), content_type="application/json")
        if fault == "truncated body":
            return web.Response(body=raw[: len(raw) // 2], content_type="application/json")
        return {
            "truncated JSON": text[: len(text) // 2],
            "wrong schema": '{"verdict": 42}',
            "empty answer": "",
            "2 MB answer": "x" * (2 << 20),
        }[fault]


def body(text: str) -> dict:
    return {
        "id": "completion",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }


async def serve(options) -> None:
    server = Server(options)
    app = web.Application(client_max_size=8 << 20)
    app.router.add_post("/v1/chat/completions", server.complete)
    app.router.add_get(
        "/counts",
        lambda _: _json({"calls": server.calls, "most_in_flight": server.most_in_flight, "requests": len(server.seen)}),
    )
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", options.port, backlog=1024)
    await site.start()
    with open(options.port_file + ".partial", "w", encoding="utf-8") as file:
        file.write(str(site._server.sockets[0].getsockname()[1]))
    os.rename(options.port_file + ".partial", options.port_file)
    await asyncio.sleep(options.lifetime)


async def _json(value: dict) -> web.Response:
    return web.json_response(value)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port-file", required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--faults", action="store_true")
    parser.add_argument("--latency", type=float, default=0)
    parser.add_argument("--log")
    parser.add_argument("--max-in-flight", type=int, default=0)
    parser.add_argument("--key")
    parser.add_argument("--lifetime", type=float, default=1800)
    asyncio.run(serve(parser.parse_args()))
