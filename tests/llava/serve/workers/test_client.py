"""A worker that is stopped is passed over or given up within seconds; one that is only slow is waited for."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest

from llava.serve.engine import ChatEngine
from llava.serve.engine.params import EngineLimits
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
from tests.llava.serve.workers.controllers import ASKED, HERE, A, B, frames

STATUS = WorkerStatus(model_names=["m"], speed=1, queue_length=0)
QUICK = Timeouts(registration_wait=0, first_frame=0.05, frame_gap=0.05, liveness=0.05)

Reply = Callable[[httpx.Request], Awaitable[httpx.Response]]


async def never(request: httpx.Request) -> httpx.Response:
    await asyncio.Event().wait()
    raise AssertionError("woken")


def replying(status: int, **options: Any) -> Reply:
    async def reply(request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, **options)

    return reply


def answering(*pieces: bytes, pause: float, first_pause: float = 0.0) -> Reply:
    """An answer whose pieces come with pauses between them."""

    async def content() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece
            await asyncio.sleep(pause)

    async def reply(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(first_pause)
        return httpx.Response(200, content=content())

    return reply


class Workers:
    """A controller in this process, and workers that answer requests in one way and the question for status in one."""

    def __init__(self, **workers: tuple[Reply, Reply]) -> None:
        self.workers = workers
        self.asked: list[str] = []
        self.registry = Registry()
        dispatcher = Dispatcher(self.registry, timeouts=QUICK, transport=httpx.MockTransport(self.answer))
        self.app = create_app(dispatcher, on_loopback=True)
        for name in workers:
            self.registry.register({"a": A, "b": B}[name], STATUS, True)

    async def answer(self, request: httpx.Request) -> httpx.Response:
        name = {A: "a", B: "b"}[f"http://{request.url.netloc.decode()}"]
        self.asked.append(f"{name}{request.url.path}")
        return await self.workers[name][request.url.path == "/worker_get_status"](request)

    def ask(self) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, client=HERE)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                return await asyncio.wait_for(client.post("/worker_generate_stream", json=ASKED), DEADLINE)

        return asyncio.run(send())


LIVELY = [replying(200, json={}), replying(200, content=b"nonsense"), replying(404), replying(401), replying(500)]


def test_a_stopped_worker_is_passed_over_and_lost_before_its_answer_has_begun() -> None:
    setup = Workers(a=(never, never), b=(answering(frame("Hi you"), pause=0), never))
    assert frames(setup.ask()) == [{"text": "Hi you", "error_code": 0}]
    assert list(setup.registry.workers()) == [B]
    assert setup.registry.status().queue_length == 0


def test_where_all_workers_are_stopped_the_client_is_told_so() -> None:
    reply = Workers(a=(never, never)).ask()
    (event,) = frames(reply)
    assert (reply.status_code, event["error_code"], event["error"]["code"]) == (502, 3, "worker_unreachable")


@pytest.mark.parametrize("status", LIVELY)
def test_a_worker_that_takes_long_to_begin_is_waited_for_whatever_it_replies_to_the_question(status: Reply) -> None:
    setup = Workers(a=(answering(frame("Hi you"), pause=0, first_pause=0.3), status))
    assert frames(setup.ask()) == [{"text": "Hi you", "error_code": 0}]
    assert setup.asked.count("a/worker_get_status") >= 2
    assert setup.asked.count("a/worker_generate_stream") == 1
    assert list(setup.registry.workers()) == [A]


def test_a_worker_that_stops_amid_an_answer_is_given_up_and_lost_and_the_request_not_repeated() -> None:
    setup = Workers(a=(answering(frame("Hi"), pause=600), never), b=(answering(frame("Hi you"), pause=0), never))
    first, last = frames(setup.ask())
    assert first == {"text": "Hi", "error_code": 0}
    assert (last["error_code"], last["error"]["code"]) == (3, "worker_unreachable")
    assert list(setup.registry.workers()) == [B]
    assert "b/worker_generate_stream" not in setup.asked


@pytest.mark.parametrize("status", LIVELY)
def test_an_answer_with_long_pauses_is_not_cut(status: Reply) -> None:
    pieces = [frame("Hi " + "you " * count) for count in range(3)]
    setup = Workers(a=(answering(*pieces, pause=0.2), status))
    assert setup.ask().content == b"".join(pieces)
    assert setup.asked.count("a/worker_get_status") >= 3


def test_an_answer_that_begins_amid_the_question_is_passed_on_without_its_reply() -> None:
    setup = Workers(a=(answering(frame("Hi you"), pause=0, first_pause=0.07), never))
    assert frames(setup.ask()) == [{"text": "Hi you", "error_code": 0}]


# Clients that go away


BEGUN = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"%x\r\n" % len(frame("Hi")) + frame("Hi") + b"\r\n"


@pytest.mark.parametrize("begun", [b"", BEGUN], ids=["before the worker replies", "during the answer"])
def test_a_client_that_goes_ends_the_workers_request(begun: bytes) -> None:
    registry = Registry()
    controller = create_app(Dispatcher(registry, timeouts=Timeouts(registration_wait=0)), on_loopback=True)
    with served(controller) as url, socket.create_server(("127.0.0.1", 0)) as worker:
        worker.settimeout(DEADLINE)
        name = "http://{}:{}".format(*worker.getsockname())
        registry.register(name, STATUS, True)
        host, port = url.removeprefix("http://").split(":")
        body = b'{"model": "m", "prompt": "Hi"}'
        with socket.create_connection((host, int(port)), DEADLINE) as client:
            head = f"POST /worker_generate_stream HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            connection, _ = worker.accept()
            connection.settimeout(DEADLINE)
            received = b""
            while not received.endswith(body):
                received += connection.recv(2**16)
            assert registry.status().queue_length == 1
            connection.sendall(begun)
            if begun:
                client.recv(1)
        with connection:
            assert connection.recv(1) == b""  # the controller hangs up too
        eventually(lambda: registry.status().queue_length == 0)
        assert list(registry.workers()) == [name]


def test_a_client_of_a_worker_that_goes_before_its_turn_leaves_no_request_behind() -> None:
    limits = EngineLimits(max_preparing=1)
    engine = ChatEngine(BytesTokenizer(), ScriptedModel(["never said"]), SquareProcessor(), 2048, limits=limits)
    busy = threading.Event()
    engine._text_preparers.submit(busy.wait)
    try:
        with served(create_worker_app(ModelWorker(engine, ["m"]))) as url:
            host, port = url.removeprefix("http://").split(":")
            body = b'{"prompt": "Hi"}'
            with socket.create_connection((host, int(port)), DEADLINE) as client:
                head = f"POST /worker_generate_stream HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
                client.sendall(head.encode() + body)
                eventually(lambda: engine.waiting == 1)
            eventually(lambda: engine.waiting == 0)
    finally:
        busy.set()
        engine.close()
    assert engine.model.calls == []
