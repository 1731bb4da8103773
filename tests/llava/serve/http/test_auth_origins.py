"""A page of another origin cannot make a browser start work here; programs and a server's own pages can."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import requests

from llava.serve.engine import ChatEngine
from llava.serve.openai.app import openai_app
from llava.serve.openai.chat import APISettings
from llava.serve.workers.frames import frame
from llava.serve.workers.worker_app import ModelWorker
from llava.serve.workers.worker_app import create_app as create_worker_app
from tests.llava.serve.fakes import BytesTokenizer, ScriptedModel, SquareProcessor
from tests.llava.serve.openai.serving import served
from tests.llava.serve.workers.controllers import A, Setup, generating

GENERATE, CHAT = "/worker_generate_stream", "/v1/chat/completions"
ASKED = {"model": "m", "prompt": "Hi"}
MESSAGES = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
HOST = "localhost:21001"


@pytest.fixture(params=["controller", "worker", "openai"])
def server(request: pytest.FixtureRequest) -> Iterator[tuple[Any, str, dict[str, Any]]]:
    """An application, a route of its that starts work, and a request for it."""
    if request.param == "controller":
        yield Setup({A: generating(frame("Hi you"))}).known(A).app, GENERATE, ASKED
        return
    engine = ChatEngine(BytesTokenizer(), ScriptedModel([" you"] * 9), SquareProcessor(), 2048)
    if request.param == "worker":
        yield create_worker_app(ModelWorker(engine, ["m"])), GENERATE, ASKED
    else:
        yield openai_app(engine, APISettings(("m",))), CHAT, MESSAGES
    engine.close()


def post(server: tuple[Any, str, dict[str, Any]], headers: dict[str, str]) -> httpx.Response:
    app, route, body = server

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{HOST}") as client:
            return await client.post(
                route, content=json.dumps(body), headers={"Content-Type": "application/json", **headers}
            )

    return asyncio.run(send())


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "application/json"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example.com"},
        {"Origin": "null"},
        {"Origin": "http://localhost:8080"},
        {"Origin": f"http://{HOST}.example.com"},
        {"Origin": f"http://{HOST}", "Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_page_of_another_origin_starts_no_work(server: Any, headers: dict[str, str], content_type: str) -> None:
    reply = post(server, {**headers, "Content-Type": content_type})
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "cross_origin")
    assert "send them from a program, or serve the page from this server's own host" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": f"http://{HOST}", "Sec-Fetch-Site": "same-origin"},
        {"Origin": f"http://{HOST}"},
        {"Origin": f"http://{HOST.upper()}"},
        {"Origin": "https://front.example.com", "Sec-Fetch-Site": "same-origin"},  # behind a proxy that changes Host
        {"Sec-Fetch-Site": "none"},
    ],
)
def test_programs_and_pages_of_the_servers_own_start_work(server: Any, headers: dict[str, str]) -> None:
    assert post(server, headers).status_code == 200


@pytest.mark.parametrize("content_type", [None, "application/x-www-form-urlencoded", "text/plain"])
def test_programs_may_name_any_content_type_where_llavas_servers_take_any(content_type: str | None) -> None:
    """`curl -d` names a form's."""
    headers = {"Content-Type": content_type} if content_type else {}
    engine = ChatEngine(BytesTokenizer(), ScriptedModel([" you"]), SquareProcessor(), 2048)
    with served(create_worker_app(ModelWorker(engine, ["m"]))) as url:
        reply = requests.post(url + GENERATE, data=json.dumps(ASKED).encode(), headers=headers, timeout=60)
    engine.close()
    assert reply.status_code == 200


def test_what_only_reads_is_for_everybody() -> None:
    """A page gets no such reply to see: nothing here tells the browser that it may."""
    with served(Setup().app) as url:
        reply = httpx.get(f"{url}/health", headers={"Origin": "http://evil.example.com"})
    assert reply.status_code == 200
    assert not [name for name in reply.headers if name.lower().startswith("access-control")]
