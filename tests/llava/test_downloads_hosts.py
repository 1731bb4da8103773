"""Whatever is given for a host or a URL is taken or refused in words: no parser's own error ever comes out."""

from __future__ import annotations

import argparse
import asyncio
import socket
from collections.abc import Callable, Iterator

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llava import downloads
from llava.images import ImageError, load_image
from llava.serve.http.addresses import host_of, server_url
from llava.serve.http.addresses import media_host as media_domain

ODD = [
    "xn--",
    "xn--a",
    "xn--.org",
    "xn--ls8h.la",
    "xn--a.\u00fc",
    "a..b",
    ".a",
    "a.",
    "-a",
    "*",
    "%",
    "a%20b",
    "a\\b",
    "a b",
    "a" * 64,
    "a." * 200,
    "a\0b",
    "a\n",
    "\ud800",
    "\u2488com",
    "\uff41",
    "\uff11.0.0.1",
    "\u0660",
    "a\u00adb",
    "[",
    "]",
    "[::1",
    "[zz]",
    "[v1.a]",
    "[fe80::1%25lo]",
    "[::ffff:10.0.0.1]",
    "h:99999",
    "h:-1",
    "h:0",
    "h:\u0663",
    "h:" + "9" * 5000,
    "u:p@h",
    "@",
    "h/\ud800",
    "",
]
SIGNS = "a.-_:/@[]%\\*0129x \u00fc\u00df\u0660\uff41\u200d\u202e\ud800\n\0#?"
PUBLIC = "93.184.216.34"
hosts = st.one_of(
    st.sampled_from(ODD), st.text(SIGNS, max_size=12), st.text(max_size=6).map(lambda text: "xn--" + text)
)


class Connecting(Exception):
    """The download would begin now."""


@pytest.fixture(scope="module", autouse=True)
def nowhere() -> Iterator[None]:
    """Resolves what a real resolver might find; where a connection would be made, raises."""

    def resolve(host: str, port: int, *args: object, **options: object) -> list[tuple[object, ...]]:
        host.encode("idna")  # as `socket.getaddrinfo` does
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (PUBLIC, port))]

    async def connect(*args: object) -> bytes:
        raise Connecting

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(downloads.socket, "getaddrinfo", resolve)
        patch.setattr(downloads, "_fetch", connect)
        yield


def each_odd_host(test: Callable[[str], None]) -> Callable[[str], None]:
    for host in ODD:
        test = example(host)(test)
    return settings(max_examples=80)(given(hosts)(test))


@each_odd_host
def test_an_image_s_url_is_downloaded_or_refused_in_words(host: str) -> None:
    try:
        load_image(f"http://{host}")
    except Connecting:
        url, name, port = downloads._split_url(f"http://{host}".strip())  # as `load_image` reads it
        assert url.copy_with(host=PUBLIC).raw_host == PUBLIC.encode()
        assert name.isascii() and 0 < port < 2**16
    except ImageError as error:
        assert 10 < len(str(error)) < 300


@each_odd_host
def test_a_host_of_the_flag_is_one_that_a_url_can_name_or_refused_in_words(host: str) -> None:
    try:
        allowed = media_domain(host)
    except argparse.ArgumentTypeError as error:
        assert "is not a host name; give it without scheme, port or path" in str(error)
    else:
        with pytest.raises(Connecting):
            load_image(f"http://{host}/a.png", allowed_hosts={allowed})


@each_odd_host
def test_a_server_s_address_can_be_asked_or_is_refused_in_words(host: str) -> None:
    try:
        address = server_url(f"http://{host}")
    except argparse.ArgumentTypeError as error:
        assert "it must read http://HOST:PORT" in str(error)
    else:
        request(address)


@each_odd_host
def test_a_worker_s_address_can_be_asked_or_is_refused_in_words(host: str) -> None:
    try:
        host_of(f"http://{host}")
    except ValueError as error:
        assert str(error).startswith(("an address must", "the address in brackets", "a host name has"))
    else:
        request(f"http://{host}")


def request(address: str) -> None:
    """Sends a request as far as a resolver: httpx, its look at the environment's proxies included, builds it all."""
    answered = httpx.MockTransport(lambda request: httpx.Response(200))

    async def send() -> None:
        request_url = httpx.URL(address + "/list_models")
        socket.getaddrinfo(request_url.raw_host.decode("ascii"), request_url.port or 80)
        async with httpx.AsyncClient(mounts={"all://x.example": answered}, transport=answered) as client:
            assert (await client.get(request_url)).status_code == 200

    asyncio.run(send())


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://xn--/", "host 'xn--' is not a host name"),
        ("http://*/", "host '\\*' is not a host name"),
        ("http://a..b/", "host 'a..b' is not a host name; it must read http"),
        ("http://h:99999/", "port is 99999; it must be 1 to 65535"),
        ("http://h:0/", "port is 0; it must be 1 to 65535"),
        ("http://h/\ud800", r"cannot be read \(UnicodeEncodeError\); it must read http"),
        ("http://\u2488com/", r"cannot be read \(InvalidURL\); it must read http"),
        ("http:///x", "needs a host and may not hold a password"),
        ("http://me:secret@h/", "needs a host and may not hold a password"),
    ],
)
def test_the_error_of_a_bad_url_says_what_is_wrong(url: str, words: str) -> None:
    def fail(*args: object, **options: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ImageError, match=words) as caught:
        patch.setattr(downloads.socket, "getaddrinfo", fail)
        load_image(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("address", ["http://h?x", "http://h#x"])
def test_an_address_to_which_no_path_can_be_added_is_refused(address: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="it must read http://HOST:PORT"):
        server_url(address)
