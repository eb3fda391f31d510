import http.server
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unicorn_hf import InputError
from unicorn_hf.data import download as module
from unicorn_hf.data.download import download


class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/image":
            self.answer(200, b"image")
        elif self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
        elif self.path == "/nowhere":
            self.answer(304, b"")
        elif self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            with_patience(self.wfile.write, b"x" * (1 << 16), 0)
        elif self.path == "/slow":
            self.send_response(200)
            self.end_headers()
            with_patience(self.wfile.write, b"x", 0.05)
        else:
            self.answer(404, b"")

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def with_patience(write, piece, pause, seconds=20):
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            write(piece)
            time.sleep(pause)
    except OSError:  # the client has gone
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_file_is_read_through_redirects(server):
    assert download(f"{server}/image", allow_private=True) == b"image"
    assert download(f"{server}/to//image", allow_private=True) == b"image"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/none", "status 404"),
        ("/endless", "larger than 1 MB"),
        ("/slow", "takes longer than"),
        ("/to/file:///etc/hostname", "expected an address"),
        ("/to/ftp://x/y", "expected an address"),
        ("/to/" * 40 + "/image", "more than 5 redirects"),
        ("/nowhere", "answers with the status 304"),
    ],
)
def test_what_does_not_end_or_leads_astray_is_one_sentence(path, reason, server, monkeypatch):
    monkeypatch.setattr(module, "MAX_SECONDS", 2.0)
    started = time.monotonic()
    with pytest.raises(InputError, match=reason):
        download(server + path, allow_private=True, max_bytes=1 << 20)
    assert time.monotonic() - started < 10


def test_a_server_of_this_machine_is_not_reached(server, monkeypatch):
    port = server.rpartition(":")[2]
    for host in ("127.0.0.1", "localhost", "127.1", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "2130706433"):
        with pytest.raises(InputError, match=rf"{port}/image: cannot be read"):
            download(f"http://{host}:{port}/image")


private = st.one_of(
    st.ip_addresses(network="10.0.0.0/8"), st.ip_addresses(network="192.168.0.0/16"),
    st.ip_addresses(network="169.254.0.0/16"), st.ip_addresses(network="172.16.0.0/12"),
    st.ip_addresses(network="fe80::/10"), st.ip_addresses(network="fc00::/7"), st.ip_addresses(network="224.0.0.0/4"),
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(address=private)
def test_private_addresses_are_refused(address):
    host = f"[{address}]" if address.version == 6 else address
    with pytest.raises(InputError, match="allow-private-addresses"):
        download(f"http://{host}/image.png")


@settings(deadline=None, max_examples=100)
@given(text=st.text(max_size=40))
def test_any_text_is_one_sentence(text):
    with pytest.raises(InputError):
        download(f"file://{text}")
    with pytest.raises(InputError):
        download(text if not text.startswith("http") else "")
