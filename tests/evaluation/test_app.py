"""The page, served by the command as a user would serve it: asked by gradio's client, and in a browser."""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
from PIL import Image

from unicorn_hf import embed, load_encoder
from unicorn_hf.data.dataset_folder import write_dataset
from unicorn_hf.data.sources import read_dataset
from unicorn_hf.evaluation.images import answer, encode_images

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="gradio is not installed: pip install 'unicorn-hf[app]'"
)

QUESTION = "what color is the image ?"
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
def address(server):
    return server.url


@pytest.fixture(scope="module")
def server(model_folder, captions):
    """A page that is being served, until the tests of this file are over; `url` is its address."""
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
        server.url = url
        yield server
    finally:
        server.terminate()
        server.communicate(timeout=60)


@pytest.fixture
def image(images, tmp_path):
    images[0].save(tmp_path / "image.png")
    return tmp_path / "image.png"


@pytest.fixture
def said(model_and_processor, images):
    return answer(*model_and_processor, QUESTION, encode_images(*model_and_processor, images[:1]), max_new_tokens=12)


@pytest.fixture
def nearest(images, captions):
    vectors = np.array(read_dataset(captions)["text_embeds"][:])
    return [CAPTIONS[row] for row in np.argsort(-vectors @ load_encoder("sandbox").encode_images(images[:1])[0])[:10]]


def test_the_page_streams_the_answer_and_finds_the_nearest_captions(address, image, said, nearest):
    from gradio_client import Client, handle_file

    client = Client(address, verbose=False)
    job = client.submit(handle_file(image), QUESTION, api_name="/ask")
    assert job.result(timeout=120) == said
    pieces = job.outputs()
    assert len(pieces) > 2 and all(said.startswith(piece) for piece in pieces)
    table, plot = client.predict(handle_file(image), api_name="/locate")
    assert [caption for _, caption in table["data"]] == nearest
    assert plot["plot"].startswith("data:image/")


def test_eight_users_at_once_get_their_own_answers_and_the_memory_stays(
    address, server, model_and_processor, images, tmp_path
):
    """Each with another image or question, several times over, while the others' answers are streaming."""
    from gradio_client import Client, handle_file

    users = []
    for user in range(8):
        path = tmp_path / f"{user}.png"
        images[user % 4].save(path)
        question = [QUESTION, "what is the color of it ?"][user // 4]
        vectors = encode_images(*model_and_processor, [images[user % 4]])
        users.append((path, question, answer(*model_and_processor, question, vectors, max_new_tokens=12)))
    assert len({said for *_, said in users}) > 4

    def ask(user):
        path, question, said = user
        client = Client(address, verbose=False)
        return [(client.predict(handle_file(path), question, api_name="/ask"), said) for _ in range(3)]

    def round_of_questions():
        with ThreadPoolExecutor(8) as pool:
            return [pair for pairs in pool.map(ask, users) for pair in pairs]

    round_of_questions()
    before = psutil.Process(server.pid).memory_info().rss
    asked = round_of_questions() + round_of_questions()
    assert [got for got, _ in asked] == [expected for _, expected in asked]
    assert psutil.Process(server.pid).memory_info().rss - before < 64e6


@pytest.mark.slow
def test_the_memory_stays_over_five_hundred_questions(address, server, images, tmp_path):
    from gradio_client import Client, handle_file

    client, process = Client(address, verbose=False), psutil.Process(server.pid)
    images[0].save(tmp_path / "image.png")

    def ask(count):
        for _ in range(count):
            client.predict(handle_file(tmp_path / "image.png"), QUESTION, api_name="/ask")
        return process.memory_info().rss

    before = ask(50)
    assert ask(500) - before < 64e6


def test_a_broken_image_and_a_giant_one_cost_a_sentence_each(address, server, image, said, tmp_path):
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    (tmp_path / "broken.png").write_bytes(image.read_bytes()[:60])
    (tmp_path / "letter.png").write_text("This is no image.")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "giant.png")
    client = Client(address, verbose=False)
    before = psutil.Process(server.pid).memory_info().rss
    for name in ("broken.png", "letter.png", "giant.png"):
        with pytest.raises(AppError, match="cannot be read as an image"):
            client.predict(handle_file(tmp_path / name), QUESTION, api_name="/ask")
    assert psutil.Process(server.pid).memory_info().rss - before < 64e6
    assert client.predict(handle_file(image), QUESTION, api_name="/ask") == said


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


def test_the_page_shows_the_end_of_a_path_alone(address):
    config = json.loads(urllib.request.urlopen(f"{address}config", timeout=60).read())
    (heading,) = (each["props"]["value"] for each in config["components"] if each["type"] == "markdown")
    assert heading.split("\n")[-1].count("/") == 1


def test_captions_before_and_after_the_transfer_are_drawn_beside_each_other():
    from unicorn_hf.evaluation.app import Clouds

    class Config:
        image_encoder, embed_dim = None, 8

    rng = np.random.default_rng(0)
    from datasets import Dataset

    columns = {name: rng.normal(size=(20, 8)).astype("float32").tolist() for name in ("text_embeds", "image_embeds")}
    clouds = Clouds(Dataset.from_dict({"caption": [str(row) for row in range(20)], **columns}), Config)
    figure = clouds.draw(rng.normal(size=8))
    assert [axes.get_title() for axes in figure.axes] == ["captions before the transfer", "captions after the transfer"]
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()


@pytest.mark.skipif(
    shutil.which("chromium") is None or importlib.util.find_spec("playwright") is None,
    reason="needs chromium and playwright: apt-get install chromium; pip install playwright",
)
def test_a_browser_uploads_asks_and_reads(address, image, said, nearest, tmp_path):
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1300, "height": 1000})
        page.set_default_timeout(120_000)
        page.goto(address)
        page.locator("input[type=file]").first.set_input_files(image)
        expect(page.get_by_text(nearest[0]).first).to_be_visible(timeout=120_000)
        page.get_by_label("Question").fill(QUESTION)
        page.get_by_label("Question").press("Enter")
        expect(page.get_by_label("Answer")).to_have_value(said, timeout=120_000)
        expect(page.get_by_role("img").or_(page.locator("img")).last).to_be_visible()
        page.screenshot(path=os.environ.get("SCREENSHOT", str(tmp_path / "page.png")))
        browser.close()
