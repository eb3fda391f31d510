import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from unicorn_hf.synthesis.chat_writer import ChatWriter


class LLMServer:
    """A server of `llm_server.py` in a process of its own."""

    def __init__(self, folder: Path, number: int, options: list[str]):
        port_file = folder / f"port-{number}"
        self.log = folder / f"calls-{number}.log"
        script = str(Path(__file__).with_name("llm_server.py"))
        command = [sys.executable, script, "--port-file", str(port_file), "--log", str(self.log), *options]
        self.process = subprocess.Popen(command)
        until = time.monotonic() + 120
        while not port_file.exists():
            assert self.process.poll() is None and time.monotonic() < until, "the test server did not start"
            time.sleep(0.02)
        self.url = f"http://127.0.0.1:{port_file.read_text()}"
        self.base_url = f"{self.url}/v1"

    def counts(self) -> dict:
        with urllib.request.urlopen(f"{self.url}/counts", timeout=5) as response:
            return json.load(response)

    def calls(self) -> list[str]:
        """The hash of the first user turn of every call, in order."""
        return self.log.read_text().split() if self.log.exists() else []

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def llm_server(tmp_path_factory):
    """Starts servers: `llm_server("--faults", ...)`."""
    servers, folder = [], tmp_path_factory.mktemp("servers")

    def start(*options: str) -> LLMServer:
        servers.append(LLMServer(folder, len(servers), list(options)))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def chat_writer(monkeypatch):
    """Makes writers for test servers: `chat_writer(server, concurrency=8)`."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def make(*servers: LLMServer, **options) -> ChatWriter:
        options = {"concurrency": 32, "timeout": 1.5, "deadline": 6.0, **options}
        return ChatWriter("m", servers=tuple(server.base_url for server in servers), **options)

    return make
