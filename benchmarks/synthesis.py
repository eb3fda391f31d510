"""The client's overhead over a bare `asyncio` + `openai` loop, its memory, and the near-duplicate filter's speed.

    python benchmarks/synthesis.py [--requests 4000] [--memory 50000 200000] [--rows 50000]

Both loops use one server in its own process that answers at once, over the same transport (aiohttp), and send the same
prompts. This package's client also renders the prompts, checks every answer (schema, filters) and writes the journal.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import resource
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")

CAPTION = "A brown dog runs across a wide lawn beside an old stone wall in soft morning light."
BODY = json.dumps(
    {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": json.dumps({"caption": CAPTION})},
            }
        ],
        "usage": {"prompt_tokens": 300, "completion_tokens": 24, "total_tokens": 324},
    }
).encode()
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)


class AnswerAtOnce(asyncio.Protocol):
    """A minimal HTTP server: one constant response per request."""

    def connection_made(self, transport):
        self.transport, self.buffer = transport, b""

    def data_received(self, data):
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0]) if b"content-length:" in head else 0
            if len(self.buffer) < end + 4 + length:
                return
            self.buffer = self.buffer[end + 4 + length :]
            self.transport.write(RESPONSE)


def serve(port) -> None:
    async def forever():
        server = await asyncio.get_running_loop().create_server(AnswerAtOnce, "127.0.0.1", 0, backlog=1024)
        port.value = server.sockets[0].getsockname()[1]
        await server.serve_forever()

    asyncio.run(forever())


def prepare(folder: Path, count: int):
    """A work folder with `count` requests, as `write_captions` makes it."""
    from unicorn_hf.synthesis.caption_stage import CaptionStage
    from unicorn_hf.synthesis.work_folder import WorkFolder

    stage, work = CaptionStage(per_row=1), WorkFolder(folder / "captions")
    rows = ({"id": f"{index:016x}", "seed": f"dog {index}", "domain": "open"} for index in range(count))
    work.prepare(rows, count, {}, {}, stage.prompts, 1)
    return stage, work


def ours(base_url: str, count: int, concurrency: int) -> float:
    from unicorn_hf.synthesis.answer_loop import answer_rank
    from unicorn_hf.synthesis.chat_writer import ChatWriter

    with tempfile.TemporaryDirectory() as folder:
        stage, work = prepare(Path(folder), count)
        stage.warm_up()
        writer = ChatWriter("m", servers=(base_url,), concurrency=concurrency)
        started = time.perf_counter()
        asyncio.run(answer_rank(stage, writer, work, 0))
        seconds = time.perf_counter() - started
        statuses = [json.loads(line)["status"] for line in work.journal_path(0).open()]
        assert statuses == ["ok"] * count
    return count / seconds


def bare(base_url: str, count: int, concurrency: int) -> float:
    import openai

    with tempfile.TemporaryDirectory() as folder:
        stage, work = prepare(Path(folder), count)
        prompts = [stage.prompt(row, 0) for row in work.rows(0)]

    async def run():
        client = openai.AsyncOpenAI(base_url=base_url, api_key="none", http_client=openai.DefaultAioHttpClient())
        left = iter(prompts)

        async def work_through():
            for prompt in left:
                completion = await client.chat.completions.create(
                    model="m",
                    messages=prompt.messages,
                    max_tokens=prompt.max_tokens,
                    temperature=1.0,
                    seed=prompt.seed,
                    response_format={"type": "json_schema", "json_schema": prompt.schema},
                )
                assert completion.choices[0].message.content

        async with client:
            await asyncio.gather(*(work_through() for _ in range(concurrency)))

    started = time.perf_counter()
    asyncio.run(run())
    return count / (time.perf_counter() - started)


def peak_memory(count: int, base_url: str, result) -> None:
    """The peak memory of `count` requests in MB; run it in its own process."""
    rate = ours(base_url, count, 256)
    result["rate"], result["mb"] = rate, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def near_duplicate_rate(count: int) -> float:
    from unicorn_hf.synthesis.duplicates import NearDuplicates

    rng = random.Random(0)
    words = [
        f"{a}{b}" for a in ("ra", "lo", "mi", "tu", "ke", "no", "si", "ba") for b in ("dan", "ver", "sol", "pim", "gat")
    ]
    texts = [" ".join(rng.choices(words, k=rng.randint(10, 40))) for _ in range(count)]
    near = NearDuplicates()
    started = time.perf_counter()
    found = sum(map(near.seen, texts))
    assert found < count / 100
    return count / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", type=int, nargs="*", default=[50_000, 200_000])
    parser.add_argument("--rows", type=int, default=50_000)
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    port = spawn.Value("i", 0)
    server = spawn.Process(target=serve, args=(port,), daemon=True)
    server.start()
    while not port.value:
        time.sleep(0.01)
    base_url = f"http://127.0.0.1:{port.value}/v1"
    try:
        print("| in flight | bare, requests/s | ours, requests/s | ours / bare |\n| --- | --- | --- | --- |")
        for concurrency in (64, 256):
            bare(base_url, 200, concurrency), ours(base_url, 200, concurrency)  # warm up
            pairs = [
                (bare(base_url, options.requests, concurrency), ours(base_url, options.requests, concurrency))
                for _ in range(options.repeats)
            ]
            ratio = statistics.median(mine / theirs for theirs, mine in pairs)
            theirs, mine = (statistics.median(side) for side in zip(*pairs, strict=True))
            print(f"| {concurrency} | {theirs:.0f} | {mine:.0f} | {ratio:.2f} |", flush=True)
        for count in options.memory:
            with spawn.Manager() as manager:
                result = manager.dict()
                process = spawn.Process(target=peak_memory, args=(count, base_url, result))
                process.start()
                process.join()
                print(f"{count:,} requests: peak {result['mb']:.0f} MB, {result['rate']:.0f} requests/s", flush=True)
        print(f"near-duplicate filter: {near_duplicate_rate(options.rows):,.0f} captions/s")
    finally:
        server.kill()


if __name__ == "__main__":
    main()
