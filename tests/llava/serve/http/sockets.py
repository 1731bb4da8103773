"""A server over real sockets whose connections are bounded, and clients that send bytes, for tests."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from llava.serve.http.bodies import BodyLimit
from llava.serve.http.limits import ConnectionLimits
from llava.serve.http.server import Server, server_config

DEADLINE = 60  # seconds
SOON = 5  # seconds: far less than any timeout of the servers here, far more than a health check takes
GET = b"GET /health HTTP/1.1\r\nHost: here\r\n\r\n"
HALF = b"GET /health HTTP/1.1\r\nHost: he"


async def health(request: Request) -> Response:
    return Response("ok")


async def echo(request: Request) -> Response:
    return Response(await request.body())


async def stream(request: Request) -> Response:
    async def pieces() -> AsyncIterator[str]:
        for index in range(int(request.query_params["pieces"])):
            await asyncio.sleep(0.1)
            yield f"{index} "

    return StreamingResponse(pieces())


async def endless(request: Request) -> Response:
    async def pieces() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 2**16
                await asyncio.sleep(0)  # uvicorn never waits once its client has gone
        finally:
            request.app.state.ended.set()

    return StreamingResponse(pieces())


@contextmanager
def serving(limits: ConnectionLimits, bounded: bool = True) -> Iterator[tuple[tuple[str, int], Starlette]]:
    """Serves an application with these limits; yields its address, and its application.

    Args:
        limits: the limits.
        bounded: whether bodies are bounded too, and so read before the application begins.
    """
    app = Starlette(
        routes=[
            Route("/health", health),
            Route("/echo", echo, methods=["POST"]),
            Route("/stream", stream),
            Route("/endless", endless),
        ]
    )
    app.state.ended = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    server = Server(server_config(BodyLimit(app, 2**20, DEADLINE) if bounded else app, limits))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield listener.getsockname(), app
    finally:
        server.should_exit = True
        thread.join(DEADLINE)
        assert not thread.is_alive()


def opened(address: tuple[str, int], data: bytes = b"") -> socket.socket:
    client = socket.create_connection(address, timeout=DEADLINE)
    client.sendall(data)
    return client


def rest(client: socket.socket) -> bytes:
    """What arrives until the server closes the connection."""
    received = b""
    try:
        while data := client.recv(2**16):
            received += data
    except ConnectionResetError:
        pass
    return received


def until(client: socket.socket, text: bytes) -> bytes:
    received = b""
    while text not in received:
        data = client.recv(2**16)
        assert data, received
        received += data
    return received


def quick_health(address: tuple[str, int]) -> float:
    """How long a new client waits for /health, in seconds."""
    start = time.monotonic()
    with opened(address, GET) as client:
        assert b"200 OK" in until(client, b"ok")
    return time.monotonic() - start
