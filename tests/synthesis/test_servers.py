"""Servers as they are: which options they take, how they refuse, and what they put beside an answer."""

import json

import picky_server
import pytest
from picky_server import serving

from unicorn_hf.errors import InputError
from unicorn_hf.synthesis import ChatWriter, write_captions
from unicorn_hf.synthesis.chat_writer import BadBody, read_completion
from unicorn_hf.synthesis.completion import Prompt

PROMPT = Prompt([{"role": "user", "content": "A caption."}], {}, 10, 0)
SEEDS = [f"{thing} number {index}" for index in range(4) for thing in ("dog", "boat", "lamp")]


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def write(server, folder, seeds=SEEDS, **options):
    options = {"concurrency": 8, "timeout": 10, "deadline": 20, **options}
    writer = ChatWriter("m", servers=(server.base_url,), **options)
    return write_captions(seeds, folder / "captions", writer=writer, captions_per_seed=1)


@pytest.mark.parametrize(
    ("kind", "options", "told"),
    [
        ("o_series", {"temperature": 0.7}, "max_completion_tokens, response_format json_schema, no temperature, seed"),
        ("o_series", {}, "max_completion_tokens, response_format json_schema, temperature, seed"),
        ("groq", {}, "max_tokens, response_format json_object, temperature, seed"),
        ("xgrammar", {}, "max_tokens, response_format json_object, temperature, seed"),
        ("vllm", {}, "max_tokens, response_format none, temperature, no seed"),
        ("llama_cpp_python", {}, "max_tokens, response_format json_object, temperature, seed"),
        ("only_param", {}, "max_tokens, response_format none, temperature, no seed"),
        ("speechless", {}, "max_completion_tokens, response_format json_schema, no temperature, seed"),
        (
            "broken_by_a_system_turn",
            {},
            "max_tokens, response_format json_schema, temperature, seed, no system turn",
        ),
        ("broken_by_a_schema", {}, "max_tokens, response_format json_object, temperature, seed"),
    ],
)
def test_the_first_request_finds_out_what_a_server_takes(kind, options, told, tmp_path, capfd):
    with serving(getattr(picky_server, kind)) as server:
        rows = write(server, tmp_path, **options)
    assert len(rows) == len(server.taken) == len(SEEDS)  # no answer is thrown away
    assert capfd.readouterr().err.count(f"{server.base_url}/: takes {told}\n") == 1
    refused = [status for _, status in server.requests].index(200)
    assert all(status == 200 for _, status in server.requests[refused:])  # the others wait for the first


def test_what_the_user_says_is_sent_and_nothing_is_tried(tmp_path):
    with serving() as server:
        write(
            server,
            tmp_path,
            token_limit="max_completion_tokens",
            response_format="none",
            send_temperature=False,
            send_seed=False,
        )
    assert all(request.keys() == {"model", "messages", "max_completion_tokens"} for request in server.taken)


def test_a_server_that_changes_in_the_run_is_followed(tmp_path, capfd):
    count = 0

    def refuse(request):
        nonlocal count
        count += 1
        return picky_server.o_series(request) if count > 5 else None

    with serving(refuse) as server:
        assert len(write(server, tmp_path, seeds=SEEDS * 1, concurrency=1)) == len(SEEDS)
    assert "takes max_completion_tokens" in capfd.readouterr().err


def test_a_prompt_that_alone_is_refused_changes_nothing_for_the_others(tmp_path):
    def refuse(request):
        if "boat number 2" in request["messages"][1]["content"]:
            return 400, picky_server.openai_error("The prompt violates our policy")

    with serving(refuse) as server:
        assert len(write(server, tmp_path, concurrency=1)) == len(SEEDS) - 1
    summary = json.loads((tmp_path / "captions" / "summary.json").read_text())
    assert summary["dead_letters"] == {"http_400": 1}
    assert "violates our policy" in (tmp_path / "captions" / "dead_letters.jsonl").read_text()
    assert all("response_format" in request for request in server.taken)
    assert len(server.requests) < 2 * len(SEEDS)


@pytest.mark.parametrize("num_seeds", [1, 12])
@pytest.mark.parametrize("status", [400, 422, 500])
def test_a_server_that_takes_nothing_is_quoted(num_seeds, status, tmp_path):
    with (
        serving(lambda request: (status, {"detail": "the cat sits on the cable"})) as server,
        pytest.raises(InputError, match="the cat sits on the cable") as raised,
    ):
        write(server, tmp_path, SEEDS[:num_seeds], deadline=3)
    assert "\n" not in str(raised.value)
    assert len(server.requests) <= 3 * 40


def test_no_redirect_is_followed(tmp_path):
    with serving() as elsewhere:
        target = f"{elsewhere.base_url}/chat/completions"
        for status in (301, 302, 303, 307, 308):
            with (
                serving(lambda request, status=status: (status, {}, {"Location": target})) as server,
                pytest.raises(InputError, match="no redirect is followed") as raised,
            ):
                write(server, tmp_path)
            assert target in str(raised.value)
    assert not elsewhere.requests


def test_without_address_and_key_the_writer_asks_for_them(tmp_path):
    with pytest.raises(InputError, match=r"--base-url .*OPENAI_API_KEY"):
        write_captions(SEEDS, tmp_path / "captions", writer=ChatWriter("m"))
    assert not list(tmp_path.iterdir())


def completion(content, finish_reason="stop", **message):
    choice = {
        "index": 0,
        "finish_reason": finish_reason,
        "message": {"role": "assistant", "content": content, **message},
    }
    return {"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 20}}


GOOD = json.dumps({"caption": "A wet dog with the number 0 on its collar runs along a beach."})
DRAFT = '{"caption": "A draft of a dog with the number 0 on a beach."}'


@pytest.mark.parametrize(
    "reply",
    [
        completion(None, reasoning_content=f"Draft: {DRAFT}"),
        completion("", reasoning=DRAFT),
        completion([{"type": "thinking", "thinking": [{"type": "text", "text": DRAFT}]}]),
        completion(f"<think>Hm. Draft: {DRAFT} No - the seed names no square, so"),
    ],
)
def test_what_stands_in_a_thought_is_no_answer(reply, tmp_path):
    with serving(reply=lambda request: reply) as server, pytest.raises(InputError, match="none of 1 requests"):
        write(server, tmp_path, ["dog number 0"])


@pytest.mark.parametrize(
    "cut",
    [
        completion(f"<think>Hm. Draft: {DRAFT} No - the seed names", "length"),
        completion(f"Hm. Draft: {DRAFT} No - the seed names", "length"),  # the template began the thought
        completion(None, "length", reasoning_content=f"Draft: {DRAFT} No"),
        completion(GOOD[:30], "length"),
        completion(f'{DRAFT} Better: {{"caption": "A dog', "max_tokens"),
    ],
)
def test_an_answer_that_is_cut_off_is_asked_again_with_more_tokens(cut, tmp_path):
    with serving(reply=lambda request: cut if request["max_tokens"] < 2048 else completion(GOOD)) as server:
        rows = write(server, tmp_path, ["dog number 0"])
    assert rows["caption"] == [json.loads(GOOD)["caption"]]
    assert [request["max_tokens"] for request in server.taken] == [256, 2048]
    summary = json.loads((tmp_path / "captions" / "summary.json").read_text())
    assert summary["usage"]["calls"] == 2 and summary["usage"]["completion_tokens"] == 40


def test_the_user_sets_the_bound_of_an_answer(tmp_path):
    cut = completion(f"<think>{DRAFT}", "length")
    with (
        serving(reply=lambda request: cut) as server,
        pytest.raises(InputError, match="cut off at 600 tokens"),
    ):
        write(server, tmp_path, ["dog number 0"], max_tokens=600)
    assert [request["max_tokens"] for request in server.taken] == [256, 600]


def test_a_complete_record_may_end_at_the_limit(tmp_path):
    with serving(reply=lambda request: completion(f"{GOOD}\n\n\n", "length")) as server:
        assert len(write(server, tmp_path, ["dog number 0"])) == 1
    assert len(server.taken) == 1


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": None, "completion_tokens": None}, {"prompt_tokens": 7}])
def test_an_answer_counts_whatever_the_server_says_of_its_tokens(usage):
    body = {"choices": [{"message": {"content": "A dog."}}], "usage": usage}
    completion = read_completion(json.dumps(body).encode(), PROMPT)
    assert completion.text == "A dog."
    assert completion.usage.prompt_tokens == (7 if usage == {"prompt_tokens": 7} else 2)


def test_an_error_with_status_200_is_told_in_the_servers_words():
    with pytest.raises(BadBody, match="model overloaded"):
        read_completion(b'{"error": {"message": "model overloaded"}}', PROMPT)


@pytest.mark.parametrize("address", ["notaurl", "127.0.0.1:8000/v1", "ftp://a/v1", "http://", "http://a:port/v1", ""])
@pytest.mark.parametrize("named_by", ["argument", "environment"])
def test_what_is_no_address_is_refused_before_anything_is_written(address, named_by, monkeypatch, tmp_path):
    servers = (address,) if named_by == "argument" else ()
    monkeypatch.setenv("OPENAI_BASE_URL", address if named_by == "environment" else "")
    with pytest.raises(InputError, match=r"is no address of a server|knows no server"):
        write_captions(SEEDS, tmp_path / "captions", writer=ChatWriter("m", servers=servers), captions_per_seed=1)
    assert not list(tmp_path.iterdir())
