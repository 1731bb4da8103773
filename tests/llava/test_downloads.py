"""URLs give pictures from public addresses, checked once; redirects, endless replies and private hosts are refused."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import pytest
from PIL import Image

from llava import downloads
from llava.images import ImageError, ImageLimits, load_image, load_images


@pytest.fixture
def picture() -> Image.Image:
    return Image.effect_noise((20, 12), 60).convert("RGB")


class Site(BaseHTTPRequestHandler):
    """Serves a picture, a redirect to it, an endless body and an error."""

    picture = b""
    seen: list[dict[str, str]] = []

    def do_GET(self) -> None:
        self.seen.append({"path": self.path, "host": self.headers["Host"]})
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "/picture.png")
            self.end_headers()
        elif self.path == "/missing":
            self.send_error(404)
        else:
            self.send_response(200)
            self.end_headers()
            repeats = 1000 if self.path == "/endless" else 1
            try:
                for _ in range(repeats):
                    self.wfile.write(self.picture)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Keeps the test's output clean."""


@pytest.fixture
def site(picture: Image.Image) -> Iterator[str]:
    buffer = BytesIO()
    picture.save(buffer, format="PNG")
    Site.picture, Site.seen = buffer.getvalue(), []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://localhost:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def localhost(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Resolves every name to 127.0.0.1 and records the look-ups."""
    lookups: list[str] = []

    def resolve(host: str, port: int, *args: object, **options: object) -> list[tuple[object, ...]]:
        lookups.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(downloads.socket, "getaddrinfo", resolve)
    return lookups


def test_a_url_gives_its_picture_from_the_address_that_was_checked(
    site: str, localhost: list[str], picture: Image.Image
) -> None:
    loaded = load_image(f"{site}/picture.png", allow_loopback=True)
    assert loaded.tobytes() == picture.tobytes()
    assert localhost[0] == "localhost"
    assert set(localhost[1:]) <= {"127.0.0.1"}  # the connection never asks for the name again
    assert Site.seen == [{"path": "/picture.png", "host": site.removeprefix("http://")}]


@pytest.mark.parametrize(
    ("path", "words"),
    [("/redirect", "answered 302"), ("/missing", "answered 404"), ("/endless", "larger than 2,000 bytes")],
)
def test_redirects_errors_and_endless_replies_are_refused(
    site: str, localhost: list[str], path: str, words: str
) -> None:
    with pytest.raises(ImageError, match=words):
        load_image(site + path, ImageLimits(max_bytes=2_000), allow_loopback=True)
    assert [request["path"] for request in Site.seen] == [path]


def test_this_machine_is_out_of_reach_unless_allowed(site: str, localhost: list[str]) -> None:
    with pytest.raises(ImageError, match="'localhost' is not a public address"):
        load_image(f"{site}/picture.png")
    assert Site.seen == []


@pytest.mark.parametrize("open_all", [load_image, lambda url, **allowed: load_images([url], **allowed)[0]])
def test_the_user_of_a_process_may_name_any_machine(
    site: str, localhost: list[str], picture: Image.Image, open_all: Callable[..., Image.Image]
) -> None:
    assert open_all(f"{site}/picture.png", allow_private=True).tobytes() == picture.tobytes()


def test_a_slow_resolver_is_bounded_as_the_download_is(monkeypatch: pytest.MonkeyPatch) -> None:
    found = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found.wait(60) and [])
    with pytest.raises(ImageError, match="finding the host 'slow.test' took longer than 0.05 seconds"):
        load_image("http://slow.test/a.png", ImageLimits(timeout=0.05))
    found.set()


def test_a_closed_port_is_a_clear_error(localhost: list[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and not listening
        with pytest.raises(ImageError, match=r"cannot download the image \(ConnectError\)"):
            load_image(f"http://localhost:{taken.getsockname()[1]}/", allow_loopback=True)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "::1",
        "::",
        "fe80::1%eth0",
        "fd00::1",
        "::ffff:10.0.0.1",
        "64:ff9b::a00:1",
        "2002:a00:1::",
        "64:ff9b:1::a00:1",
        "::127.0.0.1",
        "::ffff:0:127.0.0.1",
        "fec0::1",
        "192.88.99.1",
        "5f00::1",
        "3fff::1",
    ],
)
def test_a_host_with_any_address_that_is_not_public_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    found = [(0, 0, 0, "", ("93.184.216.34", 80)), (0, 0, 0, "", (address, 80))]
    monkeypatch.setattr(downloads.socket, "getaddrinfo", lambda *args, **options: found)
    with pytest.raises(ImageError, match="not a public address"):
        load_image("http://example.org/a.png")


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]"])
def test_spellings_of_this_machines_address_are_seen_through(host: str) -> None:
    with pytest.raises(ImageError, match="not a public address"):
        load_image(f"http://{host}/")


@pytest.mark.parametrize("found", [[], [(0, 0, 0, "", ("no address", 80))]])
def test_a_resolver_that_gives_no_address_is_a_clear_error(
    monkeypatch: pytest.MonkeyPatch, found: list[object]
) -> None:
    monkeypatch.setattr(downloads.socket, "getaddrinfo", lambda *args, **options: found)
    with pytest.raises(ImageError, match="cannot find the host 'example.org'"):
        load_image("http://example.org/a.png")


def test_an_unknown_host_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(downloads.socket, "getaddrinfo", fail)
    with pytest.raises(ImageError, match="cannot find the host 'example.org'"):
        load_image("http://example.org/a.png")


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nX-Slow: ", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_a_reply_that_drips_in_is_given_up_be_it_in_its_head(head: bytes) -> None:
    gone = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                connection.sendall(head)
                while not gone.wait(0.02):
                    connection.sendall(b"x")

        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            with pytest.raises(ImageError, match="the download took longer than 0.2 seconds"):
                load_image(
                    f"http://127.0.0.1:{listener.getsockname()[1]}/", ImageLimits(timeout=0.2), allow_loopback=True
                )
        finally:
            gone.set()
            dripping.join()


def test_a_download_works_within_a_running_event_loop(site: str, picture: Image.Image) -> None:
    async def load() -> Image.Image:
        return load_image(f"{site}/picture.png", allow_loopback=True)

    assert asyncio.run(load()).tobytes() == picture.tobytes()
