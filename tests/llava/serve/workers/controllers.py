"""A controller in this process whose workers give scripted replies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx

from llava.serve.workers.controller_app import create_app
from llava.serve.workers.dispatcher import Dispatcher, Timeouts
from llava.serve.workers.registry import Registry

A, B = "http://127.0.0.1:1001", "http://127.0.0.1:1002"
STATUS = {"model_names": ["m"], "speed": 1, "queue_length": 0}
HERE = ("127.0.0.1", 50000)
AT_ONCE = Timeouts(registration_wait=0)
ASKED = {"model": "m", "prompt": "Hi"}

Handler = Callable[[httpx.Request], httpx.Response]


async def streamed(*pieces: bytes, then: Exception | None = None) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
    if then is not None:
        raise then


def unreachable(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("no route", request=request)


class Setup:
    """A controller in this process, and what its workers answer to it."""

    def __init__(self, workers: dict[str, Handler] | None = None, **options: Any) -> None:
        self.workers = workers or {}
        self.asked: list[httpx.Request] = []
        self.recognised: list[httpx.Request] = []
        self.registry = Registry()
        token = options.get("token")
        timeouts = options.pop("timeouts", AT_ONCE)
        self.dispatcher = Dispatcher(self.registry, token, timeouts, httpx.MockTransport(self.answer))
        self.app = create_app(self.dispatcher, **{"on_loopback": True, **options})

    def answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/health":  # who registers is asked whether it is the controller itself
            self.recognised.append(request)
            return httpx.Response(404)
        self.asked.append(request)
        reply = self.workers.get(f"{request.url.scheme}://{request.url.netloc.decode()}", unreachable)(request)
        if not reply.is_closed:
            return reply
        return httpx.Response(reply.status_code, headers=reply.headers, content=streamed(reply.content))

    def known(self, *names: str) -> Setup:
        """With these workers registered."""
        for name in names:
            assert self.post("register_worker", registration(name)).status_code == 200
        return self

    def post(
        self,
        route: str,
        body: Any = None,
        peer: tuple[str, int] = HERE,
        host: str = "localhost:21001",
        **options: Any,
    ) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, client=peer)
            async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
                return await client.post(f"/{route}", json=body, **options)

        return asyncio.run(send())


def registration(name: str = A, status: Any = STATUS, **fields: Any) -> dict[str, Any]:
    return {"worker_name": name, "check_heart_beat": True, "worker_status": status, **fields}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def frames(reply: httpx.Response) -> list[dict[str, Any]]:
    assert reply.content.endswith(b"\0")
    return [json.loads(one) for one in reply.content.split(b"\0")[:-1]]


def generating(*pieces: bytes, then: Exception | None = None) -> Handler:
    """A worker that answers with these bytes, and may break off."""
    return lambda request: httpx.Response(200, content=streamed(*pieces, then=then))


def ask(setup: Setup, **fields: Any) -> httpx.Response:
    return setup.post("worker_generate_stream", {**ASKED, **fields})
