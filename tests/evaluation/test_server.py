"""`unicorn-hf serve` answers OpenAI's own client as `generate` answers on the terminal."""

import base64
import io
import socket
import subprocess
import sys
import time
import warnings

import httpx
import openai
import pytest

from unicorn_hf.evaluation.answering import ask
from unicorn_hf.evaluation.vision_tower import attach_tower

QUESTION = "what color is the image ?"


@pytest.fixture(scope="module")
def served(model_folder, clip_folder, tmp_path_factory):
    """A model with its tower; the address at which it is served."""
    folder = tmp_path_factory.mktemp("served") / "model"
    attach_tower(model_folder, folder, encoder=str(clip_folder))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "unicorn_hf", "serve", str(folder), "--port", str(port), "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process)
        yield folder, f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


def wait_for(address, process):
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(address, timeout=5).raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(0.2)
    raise RuntimeError("the server did not start")


@pytest.fixture
def client(served):
    with openai.OpenAI(base_url=served[1], api_key="none", max_retries=0) as client:
        yield client


def data_url(image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def question_about(*images) -> list[dict]:
    images = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in images]
    return [{"role": "user", "content": [{"type": "text", "text": QUESTION}, *images]}]


def test_a_client_that_sends_an_image_gets_the_answer_that_generate_gives(served, client, images):
    answers = []
    for image in images:
        expected = ask(served[0], QUESTION, [data_url(image)], device="cpu", max_new_tokens=12)
        completion = client.chat.completions.create(model="any", messages=question_about(image), max_tokens=12)
        (choice,) = completion.choices
        answers.append(choice.message.content)
        assert answers[-1] == expected
        assert choice.finish_reason == ("length" if completion.usage.completion_tokens == 12 else "stop")
    assert len(set(answers)) > 1


@pytest.mark.parametrize("count", [0, 2])
def test_none_and_several_images_are_answered(served, client, images, count):
    urls = list(map(data_url, images[:count]))
    messages = question_about(*images[:count])
    completion = client.chat.completions.create(model="any", messages=messages, max_completion_tokens=8)
    assert completion.choices[0].message.content == ask(served[0], QUESTION, urls, device="cpu", max_new_tokens=8)


def test_a_stream_is_the_same_answer_in_pieces(client, images):
    request = {"model": "any", "messages": question_about(images[0]), "max_tokens": 12}
    whole = client.chat.completions.create(**request)
    *parts, usage = client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True})
    assert "".join(part.choices[0].delta.content for part in parts) == whole.choices[0].message.content
    assert len(parts) > 2 and parts[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert usage.usage == whole.usage


def test_an_answer_ends_before_the_text_that_stops_it(client, images):
    requests = [{"model": "any", "messages": question_about(image), "max_tokens": 12} for image in images]
    answers = [client.chat.completions.create(**request).choices[0].message.content for request in requests]
    request, whole = max(zip(requests, answers, strict=True), key=lambda pair: len(set(pair[1])))
    stop = whole[len(whole) // 2 :][:3]
    for stream in (False, True):
        answer = client.chat.completions.create(**request, stop=["", stop], stream=stream)
        texts = [part.choices[0].delta.content for part in answer] if stream else [answer.choices[0].message.content]
        assert "".join(texts) == whole.split(stop)[0].strip()


def test_a_conversation_goes_on_and_a_system_turn_is_read(client, images):
    (first,) = question_about(images[0])
    asked = [first, {"role": "assistant", "content": "red"}, {"role": "user", "content": "what color is it ?"}]
    answers = {
        client.chat.completions.create(model="any", messages=messages, max_tokens=8).choices[0].message.content
        for messages in (asked, asked[2:], [{"role": "system", "content": "say yes or no"}, *asked])
    }
    assert len(answers) > 1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"messages": []}, "messages: "),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "expected the type 'text' or"),
        ({"tools": [{"type": "function", "function": {"name": "look"}}]}, "tools: Extra inputs are not permitted"),
        ({"n": 2}, "n: Input should be 1"),
        ({"max_tokens": 0}, "max_tokens: "),
        ({"image_url": "/etc/passwd"}, "expected a data URL, or one of http or https"),
        ({"image_url": "data:image/png;base64,AAAA"}, "cannot be read as an image"),
        ({"image_url": "http://127.0.0.1:1/image.png"}, "cannot be read"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_answered_is_one_sentence(client, changes, sentence, stream):
    request = {"model": "any", "messages": [{"role": "user", "content": QUESTION}]} | changes
    if url := request.pop("image_url", None):
        request["messages"] = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    with pytest.raises(openai.APIError) as error:
        list(client.chat.completions.create(**request, stream=stream))
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "sentence"),
    [
        (
            "POST",
            "chat/completions",
            b'{"model": "any", "messages": [',
            400,
            "is not JSON: Expecting value at character 30",
        ),
        ("POST", "chat/completions", b"{'model': 'any'}", 400, "is not JSON: Expecting property name"),
        ("POST", "chat/completions", b"", 400, "is not a JSON object"),
        ("POST", "chat/completions", b"[]", 400, "is not a JSON object"),
        ("POST", "chat/completions", b'"any"', 400, "is not a JSON object"),
        ("POST", "chat/completions", b"null", 400, "is not a JSON object"),
        ("POST", "chat/completions", b'{"model": "\xff"}', 400, "is not JSON in UTF-8"),
        ("POST", "chat/completions", b"[" * 200_000, 400, "nested too deeply"),
        (
            "POST",
            "chat/completions",
            b'{"model": "any", "messages": [{"role": "user", "content": "\\ud800"}]}',
            400,
            "the text of a message is '\\ud800', which is not valid Unicode",
        ),
        ("GET", "chat/completions", b"", 405, "GET /v1/chat/completions: Method Not Allowed"),
        ("POST", "completions", b"{}", 404, "POST /v1/completions: Not Found"),
    ],
)
def test_a_body_that_is_no_request_gets_an_error_of_openai(served, method, path, body, status, sentence):
    headers = {"content-type": "application/json"}
    answer = httpx.request(method, f"{served[1]}/{path}", content=body, headers=headers, timeout=30)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert sentence in error["message"] and "\n" not in error["message"]
    assert (error["type"], error["param"]) == ("invalid_request_error", None)


def test_the_model_is_listed_by_its_name(served, client):
    assert [model.id for model in client.models.list()] == [str(served[0])]


def test_transformers_own_server_takes_no_class_but_its_own(model_and_processor):
    """So docs/serving.md says; where this fails, it can be told to use that one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its oldest version imports a package by a name of before
        from transformers.cli.serving.model_manager import ModelManager

    with pytest.raises(ValueError, match="Unknown modality"):
        ModelManager.get_model_modality(*model_and_processor)
