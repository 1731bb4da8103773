"""All bodies that a server holds fit into one budget, which small ones need not share and which ends with the need."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from llava.serve.engine import ChatEngine
from llava.serve.http import bodies
from llava.serve.http.bodies import UNCOUNTED, BodyBudget, BodyLimit, take_body
from llava.serve.workers.controller_app import create_app
from llava.serve.workers.dispatcher import Dispatcher, Timeouts
from llava.serve.workers.frames import frame
from llava.serve.workers.protocol import WorkerStatus
from llava.serve.workers.registry import Registry
from llava.serve.workers.worker_app import ModelWorker
from llava.serve.workers.worker_app import create_app as create_worker_app
from tests.llava.serve.fakes import BytesTokenizer, ScriptedModel, SquareProcessor
from tests.llava.serve.openai.serving import DEADLINE, served
from tests.llava.serve.programs import eventually
from tests.llava.serve.workers.controllers import A

MIB = 2**20


class Counted:
    """An application that answers once it is let, with the length of the body, and how the bytes are counted."""

    def __init__(self, most: int, max_body: int = 8 * MIB) -> None:
        self.go = threading.Event()
        self.budget = BodyBudget(most)
        app = Starlette(routes=[Route("/", self.length, methods=["POST"])])
        self.app = BodyLimit(app, max_body, DEADLINE, self.budget)

    async def length(self, request: Request) -> Response:
        size = len(await request.body())
        while not self.go.is_set():
            await asyncio.sleep(0.01)
        return Response(str(size))


@contextlib.contextmanager
def uploading(url: str, declared: int, sent: int) -> Any:
    """A client that declares a body and sends some of it."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), DEADLINE) as client:
        client.sendall(f"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: {declared}\r\n\r\n".encode())
        client.sendall(b"x" * sent)
        yield client


def test_bodies_beyond_the_budget_are_refused_and_told_when_to_come_back() -> None:
    counted = Counted(10 * MIB)
    with served(counted.app) as url, ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(uploading(url, 5 * MIB, 5 * MIB))
        eventually(lambda: counted.budget.held == 2 * (5 * MIB - UNCOUNTED))
        reply = httpx.post(url, content=b"x" * 5 * MIB, timeout=DEADLINE)
        assert (reply.status_code, reply.headers["retry-after"], reply.json()["error"]["code"]) == (503, "1", "busy")
        assert "hold 10,485,760 bytes, the most allowed" in reply.json()["error"]["message"]
        assert counted.budget.held == 2 * (5 * MIB - UNCOUNTED)  # what was refused is let go of at once

        counted.go.set()
        eventually(lambda: counted.budget.held == 0)
        assert httpx.post(url, content=b"x" * 5 * MIB, timeout=DEADLINE).text == str(5 * MIB)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_refused_body_is_freed_at_once_and_not_with_the_garbage(
    chunked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bodies.BodyBuffer] = []

    class Noted(bodies.BodyBuffer):
        def __init__(self, most: int) -> None:
            super().__init__(most)
            made.append(self)

    monkeypatch.setattr(bodies, "BodyBuffer", Noted)
    counted = Counted(4 * MIB)
    counted.go.set()
    with served(counted.app) as url:
        reply = httpx.post(url, content=iter([b"x" * MIB] * 6) if chunked else b"x" * 6 * MIB, timeout=DEADLINE)
        assert reply.status_code == 503
    (buffer,) = made
    assert buffer.size > 3 * MIB
    assert buffer._large is None and not buffer._pieces


def test_large_bodies_leave_no_memory_with_the_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    returned: list[None] = []
    monkeypatch.setattr(bodies, "return_memory", lambda: returned.append(None))
    monkeypatch.setattr(bodies, "LARGE", MIB // 32)
    counted = Counted(10 * MIB)
    counted.go.set()
    with served(counted.app) as url:
        assert httpx.post(url, content=b"x" * MIB, timeout=DEADLINE).text == str(MIB)
        assert returned == []  # not worth the time
        assert httpx.post(url, content=b"x" * 3 * MIB, timeout=DEADLINE).text == str(3 * MIB)
        eventually(lambda: returned == [None])


def test_a_crowd_never_holds_more_than_the_budget_and_some_of_it_get_through() -> None:
    counted = Counted(10 * MIB)
    counted.go.set()
    held: list[int] = []
    grow = BodyBudget.__setattr__

    class Watched(BodyBudget):
        def __setattr__(self, name: str, value: int) -> None:
            grow(self, name, value)
            held.append(value)

    counted.app.budget = Watched(10 * MIB)
    body = b"x" * 4 * MIB

    async def crowd(url: str) -> list[int]:
        async with httpx.AsyncClient(timeout=DEADLINE) as client:
            replies = await asyncio.gather(*[client.post(url, content=body) for _ in range(12)])
        return [reply.status_code for reply in replies]

    with served(counted.app) as url:
        statuses = asyncio.run(crowd(url))
    assert set(statuses) <= {200, 503} and 200 in statuses
    assert max(held) <= 10 * MIB
    assert counted.app.budget.held == 0


def test_what_is_declared_and_not_sent_blocks_nobody() -> None:
    counted = Counted(10 * MIB)
    counted.go.set()
    with served(counted.app) as url, ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(uploading(url, 8 * MIB, 1000))
        assert httpx.post(url, content=b"x" * 8 * MIB, timeout=DEADLINE).text == str(8 * MIB)


@pytest.mark.parametrize("size", [0, 100, UNCOUNTED])
def test_a_small_body_passes_whatever_others_hold(size: int) -> None:
    counted = Counted(1 * MIB)
    with served(counted.app) as url, uploading(url, 2 * MIB, MIB + UNCOUNTED):
        eventually(lambda: counted.budget.held == MIB)
        assert httpx.post(url, content=b"x" * (size + 1 + UNCOUNTED), timeout=DEADLINE).status_code == 503
        counted.go.set()
        assert httpx.post(url, content=b"x" * size, timeout=DEADLINE).text == str(size)


def test_a_client_that_goes_amid_its_upload_gives_its_share_back() -> None:
    counted = Counted(10 * MIB)
    with served(counted.app) as url:
        with uploading(url, 8 * MIB, 4 * MIB):
            eventually(lambda: counted.budget.held == 4 * MIB - UNCOUNTED)
        eventually(lambda: counted.budget.held == 0)


@pytest.mark.parametrize(("max_body", "most"), [(MIB, 256 * MIB), (64 * MIB, 256 * MIB), (100 * MIB, 400 * MIB)])
def test_four_of_the_largest_bodies_fit(max_body: int, most: int) -> None:
    assert BodyLimit(Starlette(), max_body, 1).budget.most == most


# What is let go of when the reply begins


async def exchange(app: Any, path: str, body: Callable[[], Any], seen: Callable[[], None]) -> int:
    """Sends a request of 64 KiB pieces that the client keeps no copy of; calls `seen` during the reply; its status."""
    pieces = body()
    statuses: list[int] = []

    async def receive() -> Any:
        piece = next(pieces, None)
        if piece is None:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": piece[0], "more_body": piece[1]}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])
        elif message.get("body") and len(statuses) == 1:
            seen()
            statuses.append(0)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "scheme": "http",
        "http_version": "1.1",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
    }
    await app(scope, receive, send)
    return statuses[0]


def asked(megabytes: int) -> Any:
    """A request for an answer whose prompt is short and whose unknown field is long."""
    head = json.dumps({"model": "m", "prompt": "Hi"})[:-1] + ', "z": "'
    yield head.encode(), True
    for _ in range(megabytes * 16):
        yield b"x" * 2**16, True
    yield b'"}', False


class Discarding(httpx.AsyncBaseTransport):
    """Leads to a worker that reads a request piece by piece and answers."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        size = 0
        async for piece in request.stream:  # type: ignore[union-attr]
            size += len(piece)
        assert size == int(request.headers["Content-Length"])

        async def frames() -> AsyncIterator[bytes]:
            yield frame("Hi")
            yield frame("Hi you")

        return httpx.Response(200, content=frames(), request=request)


def controller_app() -> tuple[Any, Callable[[], None]]:
    registry = Registry()
    registry.register(A, WorkerStatus(model_names=["m"], speed=1, queue_length=0), False)
    dispatcher = Dispatcher(registry, timeouts=Timeouts(registration_wait=0), transport=Discarding())
    return create_app(dispatcher, on_loopback=True), lambda: None


def worker_app() -> tuple[Any, Callable[[], None]]:
    engine = ChatEngine(BytesTokenizer(), ScriptedModel([" you"]), SquareProcessor(), 2048)
    return create_worker_app(ModelWorker(engine, ["m"])), engine.close


@pytest.mark.parametrize("make", [controller_app, worker_app], ids=["controller", "worker"])
def test_a_body_is_in_memory_no_more_once_its_answer_begins(make: Callable[[], tuple[Any, Callable[[], None]]]) -> None:
    app, close = make()
    held: list[int] = []

    async def run() -> int:
        await exchange(app, "/worker_generate_stream", lambda: asked(0), lambda: None)  # what is kept for good is there
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        return await exchange(
            app,
            "/worker_generate_stream",
            lambda: asked(16),
            lambda: held.append(tracemalloc.get_traced_memory()[0] - before),
        )

    try:
        status = asyncio.run(run())
    finally:
        tracemalloc.stop()
        close()
    assert status == 200
    assert held[0] < 2 * MIB  # of 16


def streaming(take: Callable[[Request], Awaitable[bytes]]) -> Any:
    async def answer(request: Request) -> Response:
        await take(request)

        async def pieces() -> AsyncIterator[str]:
            yield "a"

        return StreamingResponse(pieces())

    return Starlette(routes=[Route("/", answer, methods=["POST"])])


@pytest.mark.parametrize(("take", "share"), [(take_body, 0), (Request.body, MIB)], ids=["taken", "kept"])
def test_the_share_is_given_back_when_the_body_is_let_go_of(take: Any, share: int) -> None:
    """By an application that takes it when the reply begins, by others when it ends."""
    budget = BodyBudget(4 * MIB)
    app, held = BodyLimit(streaming(take), 2 * MIB, 1, budget), list[int]()
    asyncio.run(exchange(app, "/", lambda: asked(1), lambda: held.append(budget.held)))
    assert share - 1000 < held[0] + UNCOUNTED * bool(share) <= share + 1000
    assert budget.held == 0
