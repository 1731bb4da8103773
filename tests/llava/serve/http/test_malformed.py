"""Bytes that are no valid HTTP get the documented error, and an end; over real sockets."""

from __future__ import annotations

import json

import pytest

from llava.serve.http.limits import ConnectionLimits
from tests.llava.serve.http.sockets import GET, SOON, opened, quick_health, rest, serving, until

MALFORMED = [
    pytest.param(b"POST /echo HTTP/1.1\r\nHost: here\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\na", id="lengths"),
    pytest.param(b"GET /health HTTP/1.1\r\n\r\n", id="no Host"),
    pytest.param(b"GET /h\xc3\xa4lth HTTP/1.1\r\nHost: here\r\n\r\n", id="path"),
    pytest.param(b"GET /health HTTP/1.1\r\nHost: here\r\nX: " + b"x" * 2**20 + b"\r\n\r\n", id="giant header"),
    pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", id="TLS"),
    pytest.param(b"POST /echo HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", id="chunk"),
]


def read_error(received: bytes) -> dict[str, str]:
    head, _, body = received.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 400 Bad Request"
    assert {b"Content-Type: application/json", b"Connection: close", b"Content-Length: %d" % len(body)} <= {*lines}
    error: dict[str, str] = json.loads(body)["error"]
    return error


@pytest.mark.parametrize("sent", MALFORMED)
def test_what_is_no_http_gets_the_documented_error(sent: bytes) -> None:
    with serving(ConnectionLimits()) as (address, _), opened(address, sent) as client:
        error = read_error(rest(client))
        assert (error["code"], error["type"]) == ("invalid_request", "invalid_request_error")
        assert "HTTP/1.1" in error["message"]
        assert quick_health(address) < SOON


def test_the_reply_to_an_earlier_request_comes_whole_before_the_error() -> None:
    with serving(ConnectionLimits()) as (address, _), opened(address) as client:
        client.sendall(b"GET /stream?pieces=3 HTTP/1.1\r\nHost: here\r\n\r\nGET /health HTTP/1.1\r\n\r\n")
        first, separator, second = rest(client).partition(b"HTTP/1.1 400")
        assert first.startswith(b"HTTP/1.1 200 OK") and first.endswith(b"0\r\n\r\n")
        assert read_error(separator + second)["code"] == "invalid_request"


def test_no_error_is_written_into_a_reply_that_has_begun() -> None:
    """A client that breaks off its chunked body amid the reply: the reply ends, cut."""
    with serving(ConnectionLimits(), bounded=False) as (address, _), opened(address) as client:
        client.sendall(b"GET /stream?pieces=9 HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n")
        received = until(client, b"\r\n0 ")
        client.sendall(b"no chunk\r\n")
        received += rest(client)
        assert received.startswith(b"HTTP/1.1 200 OK")
        assert received.count(b"HTTP/1.1") == 1 and b"\r\n8 " not in received


def test_a_connection_that_ends_with_the_error_takes_no_place() -> None:
    with serving(ConnectionLimits(most=1)) as (address, _), opened(address, b"nonsense\r\n\r\n") as client:
        read_error(rest(client))
        client.sendall(GET)  # is not read any more
        assert quick_health(address) < SOON
