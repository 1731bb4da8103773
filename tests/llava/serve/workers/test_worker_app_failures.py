"""A worker reports failures to its clients, and stops an answer when its client disconnects."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
import torch

from llava.serve.engine import ChatEngine
from llava.serve.engine.params import Sampling
from llava.serve.workers import controller_app
from llava.serve.workers.dispatcher import Dispatcher
from llava.serve.workers.registry import Registry
from llava.serve.workers.worker_app import ModelWorker, create_app
from tests.llava.serve import upstream
from tests.llava.serve.openai.serving import DEADLINE, Gate, loaded, reaches, served
from tests.llava.serve.programs import eventually
from tests.llava.serve.upstream import UpstreamError
from tests.llava.serve.workers.worker_requests import (
    NAME,
    encoded,
    png,
    post,
    prompt_for,
    request,
    scripted,
    told,
)

# What goes wrong


HOSTILE: list[tuple[dict[str, Any], int, str]] = [
    ({"images": []}, 400, "1 <image>, but 0 images"),
    ({"images": [encoded()] * 2}, 400, "1 <image>, but 2 images"),
    ({"images": [encoded()] * 4}, 400, "4 images; at most 3"),
    ({"images": ["!!!"]}, 400, "base64"),
    ({"images": ["/etc/passwd"]}, 400, "image"),
    ({"images": ["http://127.0.0.1/a.png"]}, 400, "send the file's content as base64"),
    ({"images": [encoded(b"")]}, 400, "image"),
    ({"images": [encoded(b"hello")]}, 400, "not a readable image"),
    ({"images": [encoded(png((64, 64))[:60])]}, 400, "not a readable image"),
    ({"images": [encoded(png((1, 1)))]}, 400, "1x1"),
    ({"images": [encoded(png((20000, 10), "1"))]}, 400, "20000x10"),
    ({"images": [encoded(png((4000, 4000), "1"))]}, 400, "at most 1,000,000"),
    ({"images": [encoded(png((64, 64)) + b" " * 2**20)]}, 413, "body is larger"),
    ({"images": [encoded(png((64, 64), format="PDF"))]}, 400, "not a readable image"),
    ({"images": [b"\0".decode()]}, 400, "base64"),
    ({"prompt": "<image>" + "¤" * 1900}, 400, "exceed the model's context of 2048"),
    ({"prompt": "<image>" + "a" * 4000}, 400, "4,007 characters; at most 4,000"),
    ({"prompt": 5}, 400, "prompt"),
    ({"prompt": None}, 400, "prompt"),
    ({"temperature": -1}, 400, "temperature must be"),
    ({"temperature": "hot"}, 400, "temperature"),
    ({"top_p": 2}, 400, "top_p must be"),
    ({"max_new_tokens": 0}, 400, "max_new_tokens must be"),
    ({"max_new_tokens": 10**40, "seed": 10**40}, 400, "seed must be"),
    ({"stop": 5}, 400, "stop"),
    ({"stop": [None]}, 400, "stop"),
    ({"stop": ["x"] * 17}, 400, "17 texts, the longest of 1 characters; at most 16 of at most 1,000"),
    ({"qlip": {"alpha": -1}}, 400, "alpha"),
    ({"qlip": {"max_tokens": 10**9}}, 400, "allows at most 4096"),
    ({"qlip": {"image_size": 10**9}}, 400, "allows at most 4096"),
    ({"qlip": {"enabled": False, "alpha": 1}}, 400, "not enabled"),
    ({"qlip": {"mlp": "/etc/passwd"}}, 400, "qlip.mlp"),
]


@pytest.mark.parametrize(("fields", "status", "said"), HOSTILE)
def test_bad_requests_are_refused_by_status_and_in_words(
    engine: ChatEngine, url: str, fields: dict[str, Any], status: int, said: str
) -> None:
    reply = post(url, request(engine, **fields))
    assert reply.status_code == status
    failure = json.loads(reply.content.rstrip(b"\0"))
    assert said in failure["text"] and failure["error_code"] == 1
    assert failure["error"]["message"] == failure["text"]
    assert engine.waiting == 0


@pytest.mark.parametrize(("fields", "said"), [(fields, said) for fields, _, said in HOSTILE[:3]])
def test_llavas_client_reads_the_reason_too(engine: ChatEngine, url: str, fields: Any, said: str) -> None:
    with pytest.raises(UpstreamError, match=rf"{said}.* \(error_code: 1\)"):
        list(upstream.chat(url, request(engine, **fields)))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"null", b"[]", b"\xff\xfe", b'{"prompt": "\\ud800"}', b"[" * 50_000, b'{"prompt": NaN}']
)
def test_what_is_no_request_is_refused(url: str, content: bytes) -> None:
    reply = httpx.post(url + "/worker_generate_stream", content=content)
    assert reply.status_code == 400
    assert told(reply)["error_code"] == 1


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
@pytest.mark.parametrize("route", ["/worker_generate_stream", "/worker_get_status"])
def test_other_methods_are_405_and_name_the_one_allowed(url: str, method: str, route: str) -> None:
    reply = httpx.request(method, url + route)
    assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
    assert method == "HEAD" or reply.json()["error"]["code"] == "method_not_allowed"


def test_what_is_not_there_is_404(url: str) -> None:
    reply = httpx.post(url + "/nowhere")
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")


def test_a_target_that_is_no_path_is_404(url: str) -> None:
    with httpx.Client() as client:
        reply = client.request("OPTIONS", url, extensions={"target": b"*"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")


def test_more_than_may_wait_is_429_and_when_to_come_back(engine: ChatEngine, url: str) -> None:
    with Gate(engine) as gate:
        first = engine.submit(prompt_for(engine, images=0), [], Sampling())
        assert gate.reached.wait(DEADLINE)
        others = [engine.submit(prompt_for(engine, images=0), [], Sampling()) for _ in range(2)]
        status = httpx.post(url + "/worker_get_status").json()
        modes = {NAME: engine.conv_mode}
        assert status == {"model_names": [NAME], "speed": 1, "queue_length": 3, "conv_modes": modes}
        reply = post(url, request(engine))
        assert reply.status_code == 429
        assert int(reply.headers["retry-after"]) >= 1
        assert "try again" in told(reply)["text"]
    for answer in (first, *others):
        answer.close()


@pytest.mark.parametrize(
    ("error", "said"),
    [("OutOfMemoryError", "out of memory; shorten the prompt"), ("RuntimeError", "the model failed")],
)
def test_a_failure_amid_the_answer_is_told_in_a_chunk(error: str, said: str) -> None:
    failure = {"OutOfMemoryError": torch.OutOfMemoryError, "RuntimeError": RuntimeError}[error]
    refused = pytest.raises(UpstreamError, match=rf"{said}.* \(error_code: 1\)")
    with scripted([failure("at /secret/path")] * 2) as url:
        assert post(url, {"prompt": "Hi"}).status_code == 200  # it was taken on, and only the chunk tells
        with refused as caught:
            list(upstream.chat(url, {"prompt": "Hi"}))
    assert "secret" not in str(caught.value)


def test_a_worker_that_ends_says_so(engine: ChatEngine) -> None:
    closed = ChatEngine(*loaded())
    closed.close()
    with served(create_app(ModelWorker(closed, [NAME]))) as url:
        reply = post(url, request(engine))
    assert reply.status_code == 503
    assert "shutting down" in told(reply)["text"]


# Clients that go


def test_the_model_stops_when_the_client_goes_before_the_answer(engine: ChatEngine, url: str) -> None:
    with Gate(engine) as gate:
        first = engine.submit(prompt_for(engine, images=0), [], Sampling())
        assert gate.reached.wait(DEADLINE)
        with httpx.stream("POST", url + "/worker_generate_stream", json=request(engine), timeout=DEADLINE) as reply:
            assert reply.status_code == 200
            assert engine.waiting == 1
        assert reaches(engine, lambda: engine.waiting == 0)
    first.close()


@pytest.mark.parametrize("program", ["worker", "controller"])
def test_a_client_that_goes_amid_its_request_is_no_error(
    engine: ChatEngine, program: str, caplog: pytest.LogCaptureFixture
) -> None:
    front = controller_app.create_app(Dispatcher(Registry()))
    app = {"worker": create_app(ModelWorker(engine, [NAME])), "controller": front}[program]
    scope = {"type": "http", "method": "POST", "path": "/worker_generate_stream", "query_string": b"", "headers": []}
    messages = [{"type": "http.request", "body": b'{"prompt": "', "more_body": True}, {"type": "http.disconnect"}]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    assert (messages, sent, caplog.records) == ([], [], [])


def test_answers_refusals_and_vanished_clients_are_counted(engine: ChatEngine) -> None:
    def count(url: str, line: str) -> float:
        lines = httpx.get(url + "/metrics").text.splitlines()
        return next((float(found.rpartition(" ")[2]) for found in lines if found.startswith(line)), 0.0)

    with served(create_app(ModelWorker(engine, [NAME]))) as url:
        list(upstream.chat(url, request(engine)))
        post(url, request(engine, images=[]))
        with (
            Gate(engine),
            httpx.stream("POST", url + "/worker_generate_stream", json=request(engine), timeout=DEADLINE),
        ):
            pass
        assert reaches(engine, lambda: engine.waiting + engine.running == 0)
        eventually(lambda: count(url, 'llava_answers_total{finish_reason="cancelled"}') == 1)
        assert count(url, 'llava_answers_total{finish_reason="stop"}') == 1
        assert count(url, 'llava_errors_total{kind="invalid_request"}') == 1
