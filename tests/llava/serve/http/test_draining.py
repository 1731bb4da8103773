"""A server that is to stop listens until the requests that run have ended, and no longer; over real sockets."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from llava.serve.http.limits import ConnectionLimits
from llava.serve.http.server import GRACE, Server, server_config

DEADLINE = 60  # seconds
SOON = 5  # seconds: far less than the servers' time for a shutdown


class Draining:
    """A server that runs in a thread, with a stream that waits until it is released."""

    def __init__(self, grace: int) -> None:
        self.stopping, self.release, self.reading = threading.Event(), threading.Event(), threading.Event()
        routes = [Route("/health", self.health), Route("/stream", self.stream)]
        app = Starlette(routes=[*routes, Route("/body", self.body, methods=["POST"])])
        config = server_config(app, ConnectionLimits())
        config.timeout_graceful_shutdown = grace
        self.server = Server(config, on_stop=self.note_stop)
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.thread = threading.Thread(target=self.server.run, args=([listener],))
        self.thread.start()

    async def note_stop(self) -> None:
        self.stopping.set()

    async def health(self, request: Request) -> Response:
        return Response(status_code=503 if self.stopping.is_set() else 200)

    async def stream(self, request: Request) -> Response:
        async def pieces() -> AsyncIterator[str]:
            yield "begun "
            while not self.release.is_set():
                await asyncio.sleep(0.01)
            yield "ended"

        return StreamingResponse(pieces())

    async def body(self, request: Request) -> Response:
        self.reading.set()
        return Response(await request.body())

    def stop(self) -> None:
        """Does what a signal does, which no thread can get; waits until the application knows."""
        self.server.should_exit = True
        assert self.stopping.wait(DEADLINE)

    def ends(self, seconds: float = DEADLINE) -> bool:
        self.thread.join(seconds)
        return not self.thread.is_alive()


@contextmanager
def draining(grace: int = GRACE) -> Iterator[Draining]:
    server = Draining(grace)
    try:
        yield server
    finally:
        server.release.set()
        server.server.should_exit = True
        assert server.ends()


@contextmanager
def stream_of(server: Draining) -> Iterator[Iterator[str]]:
    """A stream that has begun."""
    with httpx.stream("GET", server.url + "/stream", timeout=DEADLINE) as reply:
        pieces = reply.iter_text()
        assert next(pieces) == "begun "
        yield pieces


def health_of(server: Draining) -> int:
    return httpx.get(server.url + "/health").status_code


def test_new_clients_are_told_of_the_end_while_a_stream_runs() -> None:
    with draining() as server, stream_of(server) as pieces:
        assert health_of(server) == 200
        server.stop()
        assert {health_of(server) for _ in range(3)} == {503}
        server.release.set()
        assert "".join(pieces) == "ended"
        assert server.ends()
        with pytest.raises(httpx.ConnectError):
            health_of(server)


def test_an_idle_server_ends_at_once() -> None:
    with draining() as server, httpx.Client() as client:
        assert client.get(server.url + "/health").status_code == 200  # its connection stays open
        server.stop()
        assert server.ends(SOON)


def test_requests_that_come_later_do_not_put_off_the_end() -> None:
    with draining() as server:

        def probe() -> None:
            with suppress(httpx.HTTPError):
                while True:
                    health_of(server)

        with stream_of(server):
            server.stop()
            prober = threading.Thread(target=probe)
            prober.start()
            server.release.set()
            assert server.ends(SOON)
        prober.join(DEADLINE)
        assert not prober.is_alive()


@pytest.mark.parametrize("first", [True, False], ids=["before the signal", "after it"])
def test_a_request_whose_body_never_comes_does_not_put_off_the_end(first: bool) -> None:
    with draining() as server, stream_of(server) as pieces, socket.socket() as other:
        if not first:
            server.stop()
        other.connect(("127.0.0.1", int(server.url.rsplit(":", 1)[1])))
        other.sendall(b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n1")
        assert server.reading.wait(DEADLINE)
        if first:
            server.stop()
        server.release.set()
        assert "".join(pieces) == "ended"
        assert server.ends(SOON)


def test_a_stream_that_does_not_end_is_cut_in_the_end() -> None:
    with draining(grace=1) as server, stream_of(server) as pieces:
        start = time.monotonic()
        server.stop()
        assert server.ends(1 + SOON)
        assert time.monotonic() - start >= 1
        with pytest.raises(httpx.RemoteProtocolError):
            list(pieces)


def test_a_second_signal_cuts_what_runs() -> None:
    with draining() as server, stream_of(server) as pieces:
        server.stop()
        server.server.force_exit = True
        assert server.ends(SOON)
        with pytest.raises(httpx.RemoteProtocolError):
            list(pieces)
