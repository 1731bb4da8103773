"""A request that runs out of memory is answered with 503 and Retry-After, wherever memory ran out."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import torch

from llava.serve.engine import ChatEngine
from llava.serve.engine.errors import GenerationError
from llava.serve.http import bodies
from llava.serve.http.failures import explain
from llava.serve.openai import app as openai_routes
from llava.serve.openai.app import openai_app
from llava.serve.openai.chat import APISettings
from llava.serve.workers import protocol
from llava.serve.workers.worker_app import ModelWorker
from llava.serve.workers.worker_app import create_app as create_worker_app
from tests.llava.serve.fakes import BytesTokenizer, ScriptedModel, SquareProcessor
from tests.llava.serve.workers.controllers import ASKED, A, Setup, generating, registration

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


def fail(*arguments: Any, **options: Any) -> Any:
    raise MemoryError


@pytest.fixture
def engine() -> Iterator[ChatEngine]:
    engine = ChatEngine(BytesTokenizer(), ScriptedModel([]), SquareProcessor(), 2048)
    yield engine
    engine.close()


def post(app: Any, route: str, body: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app, client=("127.0.0.1", 1), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post(route, json=body)

    return asyncio.run(send())


def assert_out_of_memory(reply: httpx.Response) -> None:
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "10")
    assert b'"out_of_memory"' in reply.content
    assert b"fewer or smaller pictures" in reply.content


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB at /secret"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory: you tried"),
        GenerationError(MemoryError()),
    ],
)
def test_each_way_to_run_out_of_memory_has_the_same_words(error: Exception) -> None:
    failure = explain(error)
    assert (failure.status, failure.kind, failure.retry_after) == (503, "out_of_memory", 10)
    assert "secret" not in failure.message and "CUDA" not in failure.message


@pytest.mark.parametrize("error", [RuntimeError("CUDA error"), KeyError("memory")])
def test_other_faults_are_not_taken_for_it(error: Exception) -> None:
    assert explain(error).status == 500


@pytest.mark.parametrize("route", ["/worker_generate_stream", "/v1/chat/completions"])
@pytest.mark.parametrize("where", ["receiving", "preparing"])
def test_a_worker_and_its_openai_routes_say_so(
    engine: ChatEngine, route: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(*((bodies, "BodyBuffer", fail) if where == "receiving" else (engine, "_prepare", fail)))
    body = CHAT if route.startswith("/v1") else ASKED
    assert_out_of_memory(post(create_worker_app(ModelWorker(engine, ["m"])), route, body))


@pytest.mark.parametrize("where", ["receiving", "reading", "preparing"])
def test_the_openai_api_says_so(engine: ChatEngine, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    places = {
        "receiving": (bodies, "BodyBuffer", fail),
        "reading": (openai_routes, "from_json", fail),  # FastAPI takes any error there for a bad body
        "preparing": (engine, "_prepare", fail),
    }
    monkeypatch.setattr(*places[where])
    assert_out_of_memory(post(openai_app(engine, APISettings(("m",))), "/v1/chat/completions", CHAT))


@pytest.mark.parametrize(
    ("where", "route", "body"),
    [
        ((bodies, "BodyBuffer", fail), "/worker_generate_stream", ASKED),
        ((protocol, "parsed", fail), "/worker_generate_stream", ASKED),
        ((protocol, "parsed", fail), "/register_worker", registration()),
    ],
    ids=["receiving", "passing on", "reading"],
)
def test_a_controller_says_so(where: Any, route: str, body: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup({A: generating()}).known(A)
    monkeypatch.setattr(*where)
    reply = post(setup.app, route, body)
    monkeypatch.undo()
    assert_out_of_memory(reply)
