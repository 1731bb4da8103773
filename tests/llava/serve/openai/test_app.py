"""The API over HTTP: streams of events, invalid requests, keys, other routes beside it."""

from __future__ import annotations

import json
from typing import Any
from unittest.mock import patch

import httpx
import pytest
from fastapi import FastAPI
from pydantic import ValidationError

from llava.serve.engine import ChatEngine
from llava.serve.http.failures import Failure
from llava.serve.openai import app as openai_routes
from llava.serve.openai.app import add_openai_routes
from llava.serve.openai.chat import APISettings
from llava.serve.openai.requests import ChatRequest
from tests.llava.serve.openai.replies import error_of, events
from tests.llava.serve.openai.serving import (
    CHAT,
    DEADLINE,
    MODEL,
    QUESTION,
    api,
    body,
    data_url,
    loaded,
    served,
    user,
)

# Events


def test_a_stream_has_the_form_that_clients_parse(limited_client: httpx.Client) -> None:
    response = limited_client.post(CHAT, json=body(stream=True, stream_options={"include_usage": True}))
    *chunks, usage, end = events(response)
    assert end == "[DONE]"
    first, *middle, last = [json.loads(chunk) for chunk in chunks]
    assert first["object"] == "chat.completion.chunk"
    assert all(chunk["choices"][0].pop("logprobs") is None for chunk in (first, *middle, last))
    assert first["choices"] == [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]
    assert all(list(chunk["choices"][0]["delta"]) == ["content"] for chunk in middle)
    assert last["choices"] == [{"index": 0, "delta": {}, "finish_reason": "stop"}]
    assert all(chunk["usage"] is None for chunk in (first, *middle, last))
    assert json.loads(usage)["choices"] == []
    assert 1 <= len(middle) < json.loads(usage)["usage"]["completion_tokens"]  # pieces that wait are sent together
    assert response.headers["cache-control"] == "no-cache"


def test_an_answer_loses_the_blanks_it_begins_with() -> None:
    engine = ChatEngine(*loaded())
    blank = "\n \n"
    with api(engine) as (_, client):
        row_text = [blank, " a", " ring", blank]
        with patch.object(engine, "_generate", lambda batch: [say(answer, row_text) for answer in batch]):
            whole = client.post(CHAT, json=body()).json()
            stream = events(client.post(CHAT, json=body(stream=True)))
    assert whole["choices"][0]["message"]["content"] == f"a ring{blank}"
    contents = [json.loads(chunk)["choices"][0]["delta"].get("content") for chunk in stream[:-1]]
    assert contents[0] == "" and contents[-1] is None
    assert "".join(contents[1:-1]) == f"a ring{blank}"


def say(answer: Any, pieces: list[str]) -> None:
    for piece in pieces:
        answer.row.emit(piece)
    answer.row.finish("stop")


# Requests that are none


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("POST", f"{CHAT}/", 404, "not_found"),
        ("POST", "/v1/completions", 404, "not_found"),
        ("GET", "/v1/models/gpt-5", 404, "model_not_found"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("POST", "/health", 405, "method_not_allowed"),
    ],
)
def test_paths_and_methods_that_are_none(
    limited_client: httpx.Client, method: str, path: str, status: int, code: str
) -> None:
    response = limited_client.request(method, path)
    error_of(response, status, code)
    assert status != 405 or response.headers["allow"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the body is empty; it must be a JSON object"),
        (b"null", "the body: "),
        (b"[]", "the body: "),
        (b"{", "the body is not JSON"),
        (b"\xff\xfe", "the body is not JSON"),
        (b'{"model": NaN}', "the body is not JSON"),
        (b"[" * 100_000, "the body is not JSON"),
        (json.dumps(body({"role": "user", "content": "\ud800"})).encode(), "the body is not JSON"),
        (json.dumps(body() | {"\ud800": 1}).encode(), "the body is not JSON"),
        (b'{"model": "m"}', "messages: Field required"),
    ],
)
def test_a_body_that_is_no_request_is_refused(limited_client: httpx.Client, content: bytes, words: str) -> None:
    response = limited_client.post(CHAT, content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]


def test_a_body_of_another_kind_is_refused(limited_client: httpx.Client) -> None:
    response = limited_client.post(CHAT, content=json.dumps(body()), headers={"Content-Type": "text/plain"})
    assert "Content-Type: application/json" in error_of(response, 400, "invalid_request")["message"]


@pytest.mark.parametrize(
    ("request_body", "status", "code"),
    [
        (body({"role": "user", "content": "a" * 2001}), 400, "prompt_too_long"),
        (body({"role": "user", "content": "a " * 900}, max_tokens=2000), 400, "context_length_exceeded"),
        (body(user(QUESTION, *[data_url()] * 3)), 400, "too_many_images"),
        (body({"role": "user", "content": "a" * 400_000}), 413, "request_too_large"),
    ],
    ids=["text", "context", "images", "body"],
)
def test_a_request_beyond_the_limits_is_refused(
    limited_client: httpx.Client, request_body: dict[str, Any], status: int, code: str
) -> None:
    error_of(limited_client.post(CHAT, json=request_body), status, code)


LONG = {
    "model": {"model": "m" * 9000},
    "value": {"temperature": "t" * 9000},
    "field": {"k" * 9000: 1},
    "type": {"messages": [{"role": "user", "content": [{"type": "t" * 9000}]}]},
    "scheme": {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "a" * 1900 + "://b"}]}]},
    "fields": {f"field{i}": i for i in range(20_000)},
    "messages": {"messages": [0] * 100_000},
    "parts": {"messages": [{"role": "user", "content": [0] * 100_000}]},
    "empty messages": {"messages": [{"role": "user", "content": ""}] * 5000},
    "stops": {"stop": [0] * 100_000},
}


@pytest.mark.parametrize("fields", LONG.values(), ids=LONG)
def test_what_is_long_does_not_make_the_error_long(limited_client: httpx.Client, fields: dict[str, Any]) -> None:
    response = limited_client.post(CHAT, json=body() | fields)
    assert response.status_code in (400, 404)
    assert len(response.text) < 2000


def test_a_body_of_countless_values_is_not_even_parsed() -> None:
    with api() as (_, client), patch.object(openai_routes, "from_json", side_effect=AssertionError):
        for value in (b"[],", b"{},", b"0,"):
            content = b'{"messages": [' + value * 150_001 + b"0]}"
            response = client.post(CHAT, content=content, headers={"Content-Type": "application/json"})
            assert "more than 150,000 brackets and commas" in error_of(response, 413, "request_too_large")["message"]


def test_of_many_errors_only_the_first_is_looked_for() -> None:
    for request in LONG.values():
        with pytest.raises(ValidationError) as caught:
            ChatRequest.model_validate(body() | {"n": 2} | request)
        assert caught.value.error_count() <= 2


def test_every_route_but_health_needs_a_key() -> None:
    with api(api_keys=("one", "two")) as (_, client):
        paths = list(client.get("/openapi.json", headers={"Authorization": "Bearer two"}).json()["paths"])
        assert {"/v1/models", CHAT, "/metrics", "/health"} <= set(paths)
        for path in [*paths, "/openapi.json", "/docs", "/nowhere"]:
            for headers in ({}, {"Authorization": "Bearer three"}, {"Authorization": "Basic one"}):
                response = client.get(path, headers=headers)
                if path == "/health":
                    assert response.status_code == 200
                else:
                    assert error_of(response, 401, "invalid_api_key")["type"] == "authentication_error"
        assert client.get("/v1/models", headers={"Authorization": "bearer one"}).status_code == 200


# Beside other routes, and alone


def test_it_stands_beside_the_routes_of_another_server() -> None:
    app = FastAPI()

    @app.post("/worker_get_status")
    def worker_get_status() -> dict[str, int]:
        return {"queue_length": 0}

    engine = ChatEngine(*loaded())
    metrics = add_openai_routes(app, engine, APISettings((MODEL,)))
    with served(app) as url, httpx.Client(base_url=url, timeout=DEADLINE) as client:
        assert client.post("/worker_get_status").json() == {"queue_length": 0}
        assert client.post(CHAT, json=body()).json()["choices"][0]["finish_reason"] == "stop"
        assert events(client.post(CHAT, json=body(stream=True)))[-1] == "[DONE]"
        assert client.get("/health").status_code == 200
        metrics.failed(Failure(418, "teapot", "the application's own"))
        exposed = client.get("/metrics").text
        assert 'llava_answers_total{finish_reason="stop"} 2.0' in exposed
        assert 'llava_errors_total{kind="teapot"} 1.0' in exposed
        error_of(client.post(CHAT, json=body(n=2)), 400, "unsupported_value")
        error_of(client.get("/nowhere"), 404, "not_found")
    engine.close()
