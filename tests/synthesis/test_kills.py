"""A run that is killed, on two ranks, or without room on the disk goes on where it stopped."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import datasets
import pytest
from picky_server import serving

from unicorn_hf.data.sources import read_dataset
from unicorn_hf.errors import InputError
from unicorn_hf.synthesis import write_captions, write_instructions, write_preferences

CONCURRENCY = 16
SECOND = {"instructions": write_instructions, "preferences": write_preferences}  # steps that read captions
SEEDS = [f"{thing} number {index}" for index in range(60) for thing in ("dog", "boat", "lamp")]


def command(*arguments, server):
    return [
        *(sys.executable, "-m", "unicorn_hf", *map(str, arguments), "--writer", "chat", "--model", "m"),
        *("--base-url", server.base_url, "--concurrency", str(CONCURRENCY)),
    ]


def entries(work):
    return [json.loads(line) for path in (work / "journal").glob("*.jsonl") for line in path.read_text().splitlines()]


def journalled(work):
    return sum(path.read_bytes().count(b"\n") for path in (work / "journal").glob("*.jsonl"))


def kill_at(arguments, work, moment):
    """Start a command, and SIGKILL it when its journals hold `moment` answers; returns its process group."""
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL, start_new_session=True)
    until = time.monotonic() + 300
    while not ((work / "journal").is_dir() and journalled(work) >= moment):
        assert process.poll() is None and time.monotonic() < until, "it ended before it was to be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return process.pid


def test_three_kills_a_stage_cost_only_the_calls_in_flight(llm_server, chat_writer, tmp_path):
    (tmp_path / "seeds.txt").write_text("\n".join(SEEDS))
    undisturbed, disturbed = llm_server(), llm_server("--latency", "0.1")
    rng = random.Random(0)
    source = {"captions": tmp_path / "seeds.txt", **dict.fromkeys(SECOND, tmp_path / "captions whole")}
    options = {"captions": ["--captions-per-seed", "2"], **{stage: ["--verify"] for stage in SECOND}}
    calls = 0
    for stage in ("captions", *SECOND):
        whole, output = tmp_path / f"{stage} whole", tmp_path / stage
        writer = chat_writer(undisturbed, timeout=120, deadline=600)
        if stage == "captions":
            write_captions(source[stage], whole, writer=writer, captions_per_seed=2)
        else:
            SECOND[stage](source[stage], whole, writer=writer, verify=True)
        again = command(stage, source[stage], "-o", output, *options[stage], server=disturbed)
        for moment in sorted(rng.sample(range(10, 150), 3)):
            kill_at(again, tmp_path / f"{stage}.work", moment)
            assert not output.exists()
        subprocess.run(again, check=True, stderr=subprocess.DEVNULL)
        assert read_dataset(output).to_list() == read_dataset(whole).to_list()
        calls_now = disturbed.calls()
        repeated = len(calls_now[calls:]) - len(set(calls_now[calls:]))
        # With a second pass, the first call of a pair in flight is repeated too.
        assert repeated <= 3 * CONCURRENCY * (2 if stage in SECOND else 1)
        calls = len(calls_now)
        assert not (tmp_path / f"{stage}.work").exists()


def test_a_kill_keeps_the_failures_that_were_finished_and_what_they_cost(llm_server, chat_writer, tmp_path):
    useless = {
        "choices": [{"message": {"content": "A dog."}}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20},
    }
    (tmp_path / "seeds.txt").write_text("\n".join(SEEDS[:20]))
    with serving(reply=lambda request: time.sleep(0.05) or useless) as server:
        again = command("captions", tmp_path / "seeds.txt", "-o", tmp_path / "captions", server=server)
        kill_at([*again, "--captions-per-seed", "1"], tmp_path / "captions.work", 3)
    kept = entries(tmp_path / "captions.work")
    assert len(kept) >= 3 and all((entry["status"], entry["usage"][2]) == ("dead", 300) for entry in kept)
    healthy = llm_server()
    rows = write_captions(
        tmp_path / "seeds.txt", tmp_path / "captions", writer=chat_writer(healthy, concurrency=16), captions_per_seed=1
    )
    summary = json.loads((tmp_path / "captions" / "summary.json").read_text())
    assert summary["dead_letters"] == {"not_json": len(kept)} and len(rows) == 20 - len(kept)
    assert summary["usage"]["calls"] == 3 * len(kept) + 20 - len(kept)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a process of its parent's end")
@pytest.mark.parametrize("tasks", [1, 2])
def test_a_killed_run_leaves_no_process_behind(tasks, llm_server, tmp_path):
    server = llm_server("--latency", "0.1")
    arguments = command("captions", seeds_file(tmp_path), "-o", tmp_path / "captions", server=server)
    group = kill_at([*arguments, "--tasks", str(tasks)], tmp_path / "captions.work", 20)
    until = time.monotonic() + 20
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < until:
            os.killpg(group, 0)
            time.sleep(0.1)


def test_two_ranks_write_what_one_writes(llm_server, chat_writer, tmp_path):
    writer = chat_writer(llm_server())
    one = write_captions(SEEDS, tmp_path / "one", writer=writer)
    two = write_captions(SEEDS, tmp_path / "two", writer=writer, tasks=2, workers=2)
    assert two.to_list() == one.to_list()


def test_a_rank_that_another_process_holds_is_left_alone(llm_server, chat_writer, tmp_path):
    server = llm_server("--latency", "5")
    arguments = command("captions", seeds_file(tmp_path), "-o", tmp_path / "captions", server=server)
    process = subprocess.Popen([*arguments, "--captions-per-seed", "1"], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not server.calls():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    with pytest.raises(InputError, match="another process"):
        write_captions(SEEDS, tmp_path / "captions", writer=chat_writer(server), captions_per_seed=1)
    process.kill()
    process.wait()


def seeds_file(folder):
    (folder / "seeds.txt").write_text("\n".join(SEEDS))
    return folder / "seeds.txt"


def test_a_full_disk_is_one_sentence_and_nothing_is_lost(llm_server, tmp_path):
    server, output = llm_server(), tmp_path / "captions"
    arguments = command("captions", seeds_file(tmp_path), "-o", output, server=server)
    # No file may grow beyond the limit, and the journal is the first that would: the language model, which unpacks
    # itself to a temporary file, is loaded before.
    limited = """
import resource, sys
from unicorn_hf.cli import main
from unicorn_hf.synthesis.caption_filters import check_language
check_language("en")
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
main()
"""
    full = subprocess.run(
        [sys.executable, "-c", limited, *arguments[arguments.index("captions") :]], capture_output=True, text=True
    )
    assert full.returncode == 2, full.stderr
    assert "make room and run the same command again" in full.stderr and "Traceback" not in full.stderr
    kept = journalled(tmp_path / "captions.work")
    assert kept > 10 and not output.exists()
    subprocess.run(arguments, check=True, stderr=subprocess.DEVNULL)
    assert len(datasets.load_dataset(str(output), split="train")) > 500
    assert len(server.calls()) <= 3 * len(SEEDS) + 2 * CONCURRENCY
