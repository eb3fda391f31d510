"""The page, served by the command as a user would serve it: asked by gradio's client, and in a browser."""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest

from unicorn_hf import embed, load_encoder
from unicorn_hf.data.dataset_folder import write_dataset
from unicorn_hf.data.sources import read_dataset
from unicorn_hf.evaluation.pictures import answer, encode_pictures

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="gradio is not installed: pip install 'unicorn-hf[app]'"
)

QUESTION = "what color is the picture ?"
CAPTIONS = [
    f"a {color} {shape}" for color in ("red", "green", "blue") for shape in ("circle", "square", "cross", "star")
]


@pytest.fixture(scope="module")
def captions(tmp_path_factory):
    from datasets import Dataset

    folder = tmp_path_factory.mktemp("captions")
    plain = Dataset.from_dict({"id": list(map(str, range(len(CAPTIONS)))), "caption": CAPTIONS})
    write_dataset(plain, folder / "plain", title="Captions")
    embed(folder / "plain", folder / "embedded", encoder=load_encoder("sandbox"))
    return folder / "embedded"


@pytest.fixture(scope="module")
def address(model_folder, captions):
    """A page that is being served, until the tests of this file are over."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "unicorn_hf", "app", str(model_folder), "--captions", str(captions)]
    command += ["--port", str(port), "--max-new-tokens", "12", "--device", "cpu"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
    server = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    url = f"http://127.0.0.1:{port}/"
    try:
        deadline = time.monotonic() + 240
        while server.poll() is None and time.monotonic() < deadline:
            try:
                urllib.request.urlopen(url, timeout=10).close()
                break
            except OSError:
                time.sleep(0.5)
        else:
            server.send_signal(signal.SIGTERM)
            pytest.fail(f"the page was not served: {server.communicate(timeout=60)[0][-3000:]}")
        yield url
    finally:
        server.terminate()
        server.communicate(timeout=60)


@pytest.fixture
def picture(pictures, tmp_path):
    pictures[0].save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.fixture
def said(model_and_processor, pictures):
    return answer(
        *model_and_processor, QUESTION, encode_pictures(*model_and_processor, pictures[:1]), max_new_tokens=12
    )


@pytest.fixture
def nearest(pictures, captions):
    vectors = np.array(read_dataset(captions)["text_embeds"][:])
    return [CAPTIONS[row] for row in np.argsort(-vectors @ load_encoder("sandbox").encode_images(pictures[:1])[0])[:10]]


def test_the_page_streams_the_answer_and_finds_the_nearest_captions(address, picture, said, nearest):
    from gradio_client import Client, handle_file

    client = Client(address, verbose=False)
    job = client.submit(handle_file(picture), QUESTION, api_name="/ask")
    assert job.result(timeout=120) == said
    pieces = job.outputs()
    assert len(pieces) > 2 and all(said.startswith(piece) for piece in pieces)
    table, plot = client.predict(handle_file(picture), api_name="/locate")
    assert [caption for _, caption in table["data"]] == nearest
    assert plot["plot"].startswith("data:image/")


def test_the_page_says_what_is_wrong(address):
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    with pytest.raises(AppError, match="Ask a question"):
        Client(address, verbose=False).predict(None, " ", api_name="/ask")


def test_a_port_that_is_taken_is_one_sentence(address, model_folder):
    port = address.rstrip("/").rpartition(":")[2]
    command = [sys.executable, "-m", "unicorn_hf", "app", str(model_folder), "--port", port, "--device", "cpu"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 2 and f"port {port}" in ended.stderr and "Traceback" not in ended.stderr


@pytest.mark.skipif(
    shutil.which("chromium") is None or importlib.util.find_spec("playwright") is None,
    reason="needs chromium and playwright: apt-get install chromium; pip install playwright",
)
def test_a_browser_uploads_asks_and_reads(address, picture, said, nearest, tmp_path):
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1300, "height": 1000})
        page.set_default_timeout(120_000)
        page.goto(address)
        page.locator("input[type=file]").first.set_input_files(picture)
        expect(page.get_by_text(nearest[0]).first).to_be_visible(timeout=120_000)
        page.get_by_label("Question").fill(QUESTION)
        page.get_by_role("button", name="Ask").click()
        expect(page.get_by_label("Answer")).to_have_value(said, timeout=120_000)
        expect(page.get_by_role("img").or_(page.locator("img")).last).to_be_visible()
        page.screenshot(path=os.environ.get("SCREENSHOT", str(tmp_path / "page.png")))
        browser.close()
