"""One fast demo for all the tests that look at its folders."""

import os
import signal
import subprocess
import sys
import time

import pytest


@pytest.fixture(scope="session")
def demo_output(tmp_path_factory):
    """A fast demo that is killed when its datasets are there, and then goes on to its end."""
    folder = tmp_path_factory.mktemp("demo") / "output"
    command = [sys.executable, "-m", "unicorn_hf", "demo", "--fast", "--output", str(folder)]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while not (folder / "6-datasets").exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.2)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    kept = modified(folder)
    assert "6-datasets" in kept and "9-evaluation" not in kept
    # Not in this process, where the server that forks its training runs would stay, with this environment.
    subprocess.run(command, check=True, timeout=600)
    assert {name: modified(folder)[name] for name in kept} == kept
    return folder


def modified(folder):
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/result.txt")}
