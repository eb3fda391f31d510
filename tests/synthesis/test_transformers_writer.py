"""A tiny language model with random weights: it says nothing that can be used, but it says it for real."""

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from unicorn_hf.errors import InputError
from unicorn_hf.sandbox.language_model import train_language_model
from unicorn_hf.synthesis import ChatWriter, TransformersWriter, write_captions

SEEDS = [f"dog number {index}" for index in range(6)]


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    texts = ["You write captions of photographs. Answer with one JSON object."] * 20
    turns = [{"role": "user", "content": "A seed."}, {"role": "assistant", "content": "A caption."}]
    pairs = [(text, text) for text in texts]
    train_language_model([turns], [turns], pairs, folder, hidden_size=32, num_layers=1, steps=2, seed=0)
    return folder


def check_journal(work):
    """Every request was answered by a model, asked again as often as may be, and none of it could be used."""
    entries = [json.loads(line) for line in (work / "journal" / "00000.jsonl").open()]
    assert len(entries) == len(SEEDS)
    for entry in entries:
        calls, _, prompt_tokens, completion_tokens = entry["usage"]
        # An answer that is cut off is asked again until it has all the tokens it may have.
        assert entry["status"] == "dead" and calls in ((2, 3) if "cut off at 512" in entry["detail"] else (3,)), entry
        assert entry["reason"] in ("not_json", "wrong_schema", "empty_answer", "answer_too_large")
        assert prompt_tokens > 300 and completion_tokens > 0


def test_a_local_model_writes_with_continuous_batching(language_model, tmp_path):
    check_local_model(language_model, tmp_path)


def test_a_template_without_a_system_turn_gets_its_words_with_the_question(language_model, tmp_path):
    folder = shutil.copytree(language_model, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        + (tokenizer.chat_template)
    )
    tokenizer.save_pretrained(folder)
    check_local_model(folder, tmp_path)


def check_local_model(folder, tmp_path):
    writer = TransformersWriter(folder, device="cpu", concurrency=4, max_tokens=512)
    with pytest.raises(InputError, match="none of 6 requests gave a row"):
        write_captions(SEEDS, tmp_path / "captions", writer=writer, captions_per_seed=1)
    check_journal(tmp_path / "captions.work")


def test_a_cache_is_no_larger_than_what_half_of_the_free_memory_holds(language_model, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(language_model)
    writer = TransformersWriter(str(language_model), concurrency=64)
    usual = writer._num_blocks(model)
    blocks = []
    for free in (400e6, 100e6, 40e6):
        monkeypatch.setattr("unicorn_hf.synthesis.transformers_writer._free_memory", lambda free=free: free)
        blocks.append(writer._num_blocks(model))
        config = model.config.get_text_config()
        a_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
        assert blocks[-1] * 256 * a_token < free / 2
    assert usual >= blocks[0] > blocks[1] > blocks[2]


def test_too_little_memory_is_one_sentence_before_the_first_request(language_model, tmp_path, monkeypatch):
    monkeypatch.setattr("unicorn_hf.synthesis.transformers_writer._free_memory", lambda: 1e6)
    with pytest.raises(InputError, match=r"GB of memory besides its weights, but 0.0 GB are free"):
        write_captions(SEEDS, tmp_path / "captions", writer=TransformersWriter(str(language_model), device="cpu"))


def test_a_generation_that_dies_ends_the_run_at_once(language_model, tmp_path, monkeypatch, capfd):
    # The manager finds that its cache does not fit, as it does where another process takes the memory meanwhile.
    monkeypatch.setattr(TransformersWriter, "_num_blocks", lambda self, model: 1 << 40)
    started = time.monotonic()
    with pytest.raises(InputError, match="the generation has stopped") as raised:
        write_captions(SEEDS, tmp_path / "captions", writer=TransformersWriter(str(language_model), device="cpu"))
    assert time.monotonic() - started < 60
    assert "\n" not in str(raised.value)
    assert "Traceback" not in capfd.readouterr().err


def test_a_folder_that_is_no_model_is_named_with_the_whole_reason(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "nothing"}')
    with pytest.raises(InputError, match="cannot be loaded as a language model") as raised:
        write_captions(SEEDS, tmp_path / "captions", writer=TransformersWriter(str(tmp_path)))
    assert "\n" not in str(raised.value) and not str(raised.value).endswith(": )")


def test_a_model_without_chat_template_is_named(language_model, tmp_path):
    with pytest.raises(InputError, match="cannot be loaded as a language model"):
        write_captions(SEEDS, tmp_path / "captions", writer=TransformersWriter(str(tmp_path)))


@pytest.fixture
def serving(language_model):
    """The base URL of `transformers serve`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(language_model)]
    process = subprocess.Popen(
        [*command, "--device", "cpu", "--dtype", "float32", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 180
        while True:
            assert process.poll() is None and time.monotonic() < until, "transformers serve did not start"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


def test_a_real_server_is_spoken_to_in_its_protocol(serving, language_model, tmp_path):
    writer = ChatWriter(str(language_model), servers=(serving,), concurrency=2, timeout=60, max_tokens=512)
    with pytest.raises(InputError, match="none of 6 requests gave a row"):
        write_captions(SEEDS, tmp_path / "captions", writer=writer, captions_per_seed=1)
    check_journal(tmp_path / "captions.work")
