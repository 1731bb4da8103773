"""A server's connections are bounded in number and in the time that their clients may take; over real sockets."""

from __future__ import annotations

import json
import resource
import socket
import subprocess
import sys
import time
from contextlib import ExitStack

import httpx
import pytest
from starlette.applications import Starlette

from llava.serve.http.connections import client_of
from llava.serve.http.limits import ConnectionLimits
from llava.serve.http.server import server_config
from tests.llava.serve.http.sockets import DEADLINE, GET, HALF, SOON, opened, quick_health, rest, serving, until

# Time


def test_a_client_that_sends_nothing_is_given_up_without_a_word() -> None:
    with serving(ConnectionLimits(header_timeout=0.3)) as (address, _), opened(address) as client:
        assert rest(client) == b""


def test_headers_that_drip_are_given_up_in_words() -> None:
    with serving(ConnectionLimits(header_timeout=0.3)) as (address, _), opened(address, HALF) as client:
        client.settimeout(0.02)
        received, start = b"", time.monotonic()
        while not received:
            assert time.monotonic() < start + DEADLINE
            client.sendall(b"a")
            try:
                received = client.recv(2**16)
            except TimeoutError:
                continue
        assert received.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        error = json.loads(received.partition(b"\r\n\r\n")[2])["error"]
        assert (error["code"], error["message"]) == (
            "request_timeout",
            "the request's headers took longer than 0.3 seconds",
        )


def test_a_kept_connection_whose_next_request_stays_half_is_given_up() -> None:
    with serving(ConnectionLimits(header_timeout=0.3)) as (address, _), opened(address, GET) as client:
        assert b"200 OK" in until(client, b"ok")
        client.sendall(HALF)
        assert rest(client).startswith(b"HTTP/1.1 408 ")


def test_a_kept_connection_outlives_the_timeout_as_long_as_it_is_used() -> None:
    with serving(ConnectionLimits(header_timeout=1)) as (address, _), opened(address) as client:
        for _ in range(8):
            client.sendall(GET)
            assert b"200 OK" in until(client, b"ok")
            time.sleep(0.2)


@pytest.mark.parametrize("limits", [ConnectionLimits(), ConnectionLimits(header_timeout=7.5, stall_timeout=0.1)])
def test_no_timeout_of_uvicorn_s_ends_a_kept_connection_before_our_own(limits: ConnectionLimits) -> None:
    """uvicorn's own 5 s are those after which httpx gives up a connection: both at one time lose a request."""
    assert server_config(Starlette(), limits).timeout_keep_alive > max(limits.header_timeout, limits.stall_timeout)


def test_pipelined_requests_are_answered_one_after_the_other() -> None:
    with serving(ConnectionLimits(header_timeout=1)) as (address, _), opened(address) as client:
        client.sendall(b"GET /stream?pieces=3 HTTP/1.1\r\nHost: here\r\n\r\n" + GET + HALF)
        received = rest(client)
        assert received.count(b"HTTP/1.1 200 OK") == 2
        assert received.index(b"2 ") < received.index(b"ok") < received.index(b"HTTP/1.1 408")


def test_an_answer_that_takes_longer_than_headers_may_is_not_cut() -> None:
    with serving(ConnectionLimits(header_timeout=0.3, stall_timeout=0.3)) as (address, _):
        reply = httpx.get("http://{}:{}/stream?pieces=12".format(*address), timeout=DEADLINE)
        assert reply.text == "".join(f"{index} " for index in range(12))


def test_a_body_may_take_longer_than_headers_may() -> None:
    """How long, `BodyLimit` says."""
    head = b"POST /echo HTTP/1.1\r\nHost: here\r\nConnection: close\r\nContent-Length: 8\r\n\r\n"
    with serving(ConnectionLimits(header_timeout=0.3)) as (address, _), opened(address, head) as client:
        for _ in range(8):
            time.sleep(0.1)
            client.sendall(b"x")
        assert rest(client).endswith(b"x" * 8)


def test_a_client_that_does_not_read_its_reply_is_given_up() -> None:
    asked = b"GET /endless HTTP/1.1\r\nHost: here\r\n\r\n"
    with serving(ConnectionLimits(stall_timeout=0.3)) as (address, app), opened(address, asked):
        assert app.state.ended.wait(DEADLINE)


def test_a_client_that_reads_slowly_is_not() -> None:
    with serving(ConnectionLimits(stall_timeout=0.5)) as (address, app), socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**14)
        client.settimeout(DEADLINE)
        client.connect(address)
        client.sendall(b"GET /endless HTTP/1.1\r\nHost: here\r\n\r\n")
        for _ in range(20):
            time.sleep(0.1)
            assert client.recv(2**18, socket.MSG_WAITALL)
        assert not app.state.ended.is_set()


# Number


@pytest.mark.parametrize("count", [100, 600])
@pytest.mark.parametrize(
    "sent", [HALF, b"POST /echo HTTP/1.1\r\nHost: here\r\nContent-Length: 9\r\n\r\nx"], ids=["headers", "body"]
)
def test_a_crowd_of_half_sent_requests_leaves_health_answering(count: int, sent: bytes) -> None:
    most = 200
    with serving(ConnectionLimits(most)) as (address, _), ExitStack() as crowd:
        clients = [crowd.enter_context(opened(address, sent)) for _ in range(count)]
        assert quick_health(address) < SOON
        for client in clients[: max(0, count - most)]:  # those that waited longest
            assert rest(client) == b""
        assert quick_health(address) < SOON


def test_where_every_connection_is_being_answered_a_new_one_is_refused_at_once() -> None:
    with serving(ConnectionLimits(most=3)) as (address, _), ExitStack() as crowd:
        asked = b"GET /stream?pieces=600 HTTP/1.1\r\nHost: here\r\n\r\n"
        clients = [crowd.enter_context(opened(address, asked)) for _ in range(3)]
        for client in clients:
            until(client, b"0 ")
        with opened(address, GET) as late:
            head, _, body = rest(late).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ") and b"Retry-After: 1" in head
        assert json.loads(body)["error"]["code"] == "too_many_connections"
        for client in clients:
            until(client, b" ")  # they go on
        clients[0].close()
        start = time.monotonic()
        while time.monotonic() < start + DEADLINE:  # its place is free as soon as the server has noticed
            with opened(address, GET) as client:
                if b"200 OK" in until(client, b"}" if b"503" in client.recv(12, socket.MSG_PEEK) else b"ok"):
                    return
        raise AssertionError("no place became free")


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("127.0.0.2", ""),
        ("::1", ""),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_who_a_client_is(address: str, client: str) -> None:
    """RFC 4291: the interface has the last 64 bits of an address of IPv6, so that one machine may have them all."""
    assert client_of((address, 1)) == client


def test_one_address_gets_a_quarter_of_the_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback is counted as another machine is, since the tests have no other one."""
    monkeypatch.setattr("llava.serve.http.connections.client_of", lambda address: str(address[1] % 2))
    with serving(ConnectionLimits(most=40)) as (address, _), ExitStack() as crowd:
        clients = [crowd.enter_context(opened(address, HALF)) for _ in range(80)]
        assert quick_health(address) < SOON
        parities = [[client for client in clients if client.getsockname()[1] % 2 == parity] for parity in (0, 1)]
        for mine in parities:
            for client in mine[: len(mine) - 10]:
                assert rest(client) == b""
            for client in mine[len(mine) - 8 :]:  # two may have made place for those that asked for health
                client.sendall(b"re\r\n\r\n")
                assert b"200 OK" in until(client, b"ok")


# Files


@pytest.mark.parametrize(("soft", "hard", "most"), [(256, 4096, 1000), (256, 1024, 128), (4096, 4096, 1000)])
def test_the_limit_on_open_files_is_raised_or_kept_to(soft: int, hard: int, most: int) -> None:
    program = (
        "import resource\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
        "from llava.serve.http.limits import ConnectionLimits, fit_open_files\n"
        "limits = fit_open_files(ConnectionLimits(1000))\n"
        "print(limits.most, *resource.getrlimit(resource.RLIMIT_NOFILE))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] >= 4096
    allowed, now, still = map(int, done.stdout.split())
    assert (allowed, still) == (most, hard)
    assert now >= min(hard, 2 * 1000)
    assert ("ulimit -n" in done.stderr) == (most < 1000)
