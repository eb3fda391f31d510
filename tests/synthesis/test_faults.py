"""Against servers that fail in every way at once, die, refuse, and throttle."""

import json

import pytest

from unicorn_hf.errors import InputError
from unicorn_hf.synthesis import retry_failed, write_captions, write_instructions

THINGS = ("dog", "tree", "horse", "parrot", "bridge", "violin", "tractor", "teapot")


def make_seeds(count):
    return [f"{THINGS[index % 8]} number {index}" for index in range(count)]


def account(folder):
    """The summary, checked against the files: every request is in exactly one of them."""
    summary = json.loads((folder / "summary.json").read_text())
    kept = len((folder / "rejected.jsonl").read_text().splitlines())
    dead = len((folder / "dead_letters.jsonl").read_text().splitlines())
    assert kept == sum(summary["rejected"].values())
    assert dead == sum(summary["dead_letters"].values())
    assert summary["rows"] + kept + dead == summary["requested"]
    return summary


def test_every_seed_is_accounted_for_through_all_faults_at_once(llm_server, chat_writer, tmp_path):
    server = llm_server("--faults")
    writer = chat_writer(server, concurrency=128)
    captions = write_captions(make_seeds(2000), tmp_path / "captions", writer=writer, captions_per_seed=1)
    summary = account(tmp_path / "captions")
    assert summary["requested"] == 2000 and summary["rows"] == len(captions)
    # 5 of 100 requests fail every time, and nothing else may be lost.
    assert 50 <= sum(summary["dead_letters"].values()) <= 160
    reasons = {"http_429", "http_500", "http_503", "not_json", "wrong_schema", "empty_answer", "answer_too_large"}
    reasons |= {"invalid_utf8", "broken_body", "timeout", "connection"}
    assert reasons <= set(summary["dead_letters"])
    assert summary["usage"]["retries"] > 500
    dead = [json.loads(line) for line in (tmp_path / "captions" / "dead_letters.jsonl").open()]
    lost = set(make_seeds(2000)) - set(captions["seed"]) - {entry["row"]["seed"] for entry in dead}
    rejected = [json.loads(line) for line in (tmp_path / "captions" / "rejected.jsonl").open()]
    assert lost == {entry["row"]["seed"] for entry in rejected} - set(captions["seed"])


def test_every_caption_is_accounted_for_through_all_faults_at_once(llm_server, chat_writer, tmp_path):
    captions = write_captions(
        make_seeds(300), tmp_path / "captions", writer=chat_writer(llm_server()), captions_per_seed=1
    )
    writer = chat_writer(llm_server("--faults"), concurrency=64)
    rows = write_instructions(captions, tmp_path / "conversations", writer=writer, verify=True, format="llava")
    summary = account(tmp_path / "conversations")
    assert summary["requested"] == 300 and summary["rejected"].keys() == {"not_verified"}
    assert sum(summary["tasks"].values()) == len(rows)
    assert set(summary["right_letters"]) == set("ABCD")
    for row in rows:
        contents = [message["content"] for message in row["messages"]]
        assert contents[0].startswith("<image>\n") and "".join(contents).count("<image>") == 1
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"] * (len(contents) // 2)
    llava = json.loads((tmp_path / "conversations" / "conversations.json").read_text())
    assert [record["id"] for record in llava] == rows["id"][:]
    assert {turn["from"] for record in llava for turn in record["conversations"]} == {"human", "gpt"}


def test_what_failed_can_be_asked_again(llm_server, chat_writer, tmp_path):
    output = tmp_path / "captions"
    write_captions(make_seeds(150), output, writer=chat_writer(llm_server("--faults")), captions_per_seed=1)
    assert account(output)["dead_letters"]
    healthy = llm_server()
    again = retry_failed(output, servers=(healthy.base_url,))
    summary = account(output)
    assert summary["dead_letters"] == {} and summary["rows"] == len(again)
    assert healthy.counts()["calls"] < 50
    assert not (tmp_path / "captions.work").exists()
    clean = write_captions(make_seeds(150), tmp_path / "clean", writer=chat_writer(llm_server()), captions_per_seed=1)
    assert again.to_list() == clean.to_list()
    with pytest.raises(InputError, match="no unfinished run"):
        retry_failed(output)


def test_one_server_of_two_may_die(llm_server, chat_writer, tmp_path):
    first, second = llm_server("--latency", "0.02"), llm_server("--latency", "0.02")
    writer = chat_writer(first, second, concurrency=16)
    first.stop()
    rows = write_captions(make_seeds(300), tmp_path / "captions", writer=writer, captions_per_seed=1)
    summary = account(tmp_path / "captions")
    assert len(rows) == 300 and not summary["dead_letters"]
    assert second.counts()["calls"] == 300
    assert summary["usage"]["retries"] < 100  # the dead one is left alone


def test_concurrency_follows_what_the_server_takes(llm_server, chat_writer, tmp_path):
    server = llm_server("--latency", "0.05", "--max-in-flight", "8")
    writer = chat_writer(server, concurrency=64, deadline=60)
    rows = write_captions(make_seeds(600), tmp_path / "captions", writer=writer, captions_per_seed=1)
    assert len(rows) == 600
    assert account(tmp_path / "captions")["usage"]["retries"] < 300


def test_a_run_without_any_server_stops_and_goes_on_later(llm_server, chat_writer, tmp_path):
    server = llm_server()
    server.stop()
    writer = chat_writer(server, deadline=0.5)
    with pytest.raises(InputError, match="requests failed"):
        write_captions(make_seeds(200), tmp_path / "captions", writer=writer, captions_per_seed=1)
    assert not (tmp_path / "captions").exists()
    rows = write_captions(make_seeds(200), tmp_path / "captions", writer=chat_writer(llm_server()), captions_per_seed=1)
    assert len(rows) == 200 and not (tmp_path / "captions.work").exists()


def test_a_refused_key_stops_at_once_and_is_told_to_nobody(llm_server, chat_writer, tmp_path, monkeypatch, capfd):
    server = llm_server("--key", "sk-the-right-one")
    writer = chat_writer(server)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret-and-wrong")
    with pytest.raises(InputError, match="refuses the key"):
        write_captions(make_seeds(50), tmp_path / "captions", writer=writer)
    assert server.counts()["calls"] <= writer.concurrency
    monkeypatch.setenv("OPENAI_API_KEY", "sk-the-right-one")
    write_captions(
        make_seeds(50), tmp_path / "captions", writer=chat_writer(llm_server("--key", "sk-the-right-one", "--faults"))
    )
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert (tmp_path / "captions.work" / "journal" / "00000.jsonl") in files
    said = "".join(capfd.readouterr()) + "".join(path.read_bytes().decode("latin-1") for path in files)
    assert "sk-very" not in said and "sk-the" not in said


def test_another_plan_does_not_go_on_with_this_ones_answers(llm_server, chat_writer, tmp_path):
    writer = chat_writer(llm_server("--faults"))
    write_captions(make_seeds(150), tmp_path / "captions", writer=writer, captions_per_seed=1)
    (tmp_path / "captions").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="another stage"):
        write_captions(make_seeds(150), tmp_path / "captions", writer=writer, captions_per_seed=1, seed=1)
    with pytest.raises(InputError, match="another input"):
        write_captions(make_seeds(150)[::-1], tmp_path / "captions", writer=writer, captions_per_seed=1)


def test_a_wrong_model_does_not_block_the_right_one(tmp_path):
    from picky_server import serving

    from unicorn_hf.synthesis import ChatWriter

    def refuse(request):
        return (404, {"error": {"message": "no such model"}}) if request["model"] == "wrong" else None

    with serving(refuse) as server:
        options = {"servers": (server.base_url,), "concurrency": 4}
        with pytest.raises(InputError, match="no such model"):
            write_captions(make_seeds(8), tmp_path / "captions", writer=ChatWriter("wrong", **options))
        rows = write_captions(make_seeds(8), tmp_path / "captions", writer=ChatWriter("right", **options))
    assert len(set(rows["seed"])) == 8
    assert not (tmp_path / "captions.work").exists()


def test_conversations_are_checked_by_default_and_the_cost_is_shown(llm_server, chat_writer, tmp_path):
    from datasets import Dataset

    from unicorn_hf.synthesis import Prices

    captions = Dataset.from_dict(
        {"id": list(map(str, range(40))), "caption": [f"A dog number {i} in the sun." for i in range(40)]}
    )
    writer = chat_writer(llm_server(), prices=Prices(1.0, 1.0))
    write_instructions(captions, tmp_path / "checked", writer=writer)
    summary = account(tmp_path / "checked")
    assert summary["rejected"].keys() == {"not_verified"}
    assert summary["checking"]["usage"]["calls"] == 40
    assert 2 * summary["checking"]["cost"] == pytest.approx(summary["cost"])
    write_instructions(captions, tmp_path / "unchecked", writer=writer, verify=False)
    assert not account(tmp_path / "unchecked")["rejected"]
    assert "checking" not in account(tmp_path / "unchecked")


def test_a_budget_is_kept_and_the_rest_can_be_bought_later(llm_server, chat_writer, tmp_path):
    from unicorn_hf.synthesis import Prices

    server = llm_server()
    writer = chat_writer(server, concurrency=16, prices=Prices(prompt=10.0, completion=100.0))
    price = (100 * 10 + 20 * 100) / 1e6  # what one call costs at the test server
    output = tmp_path / "captions"
    rows = write_captions(make_seeds(200), output, writer=writer, captions_per_seed=1, budget=0.5)
    summary = account(output)
    assert 0 < len(rows) < 200 and summary["dead_letters"] == {"out_of_budget": 200 - len(rows)}
    assert summary["cost"] == pytest.approx(price * server.counts()["calls"]) and summary["cost"] <= 0.5
    retry_failed(output, budget=10)
    assert account(output)["rows"] == 200 and server.counts()["calls"] == 200
    with pytest.raises(InputError, match="prices"):
        write_captions(make_seeds(2), tmp_path / "more", writer=chat_writer(server), budget=1.0)
