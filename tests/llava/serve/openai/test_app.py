"""The API on the wire: events, errors in OpenAI's shape, hostile pictures, clients that leave, full queues."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any
from unittest.mock import patch

import httpx
import pytest
import torch
from fastapi import FastAPI
from PIL import Image
from pydantic import ValidationError

from llava.images import ImageLimits
from llava.serve import openai_api
from llava.serve.engine import ChatEngine
from llava.serve.engine.params import EngineLimits
from llava.serve.http import server
from llava.serve.http.connections import ConnectionLimits
from llava.serve.http.failures import Failure
from llava.serve.http.limits import RequestLimits
from llava.serve.http.listening import Listener
from llava.serve.openai import app as openai_routes
from llava.serve.openai.app import add_openai_routes
from llava.serve.openai.chat import APISettings
from llava.serve.openai.requests import ChatRequest
from tests.llava.serve.openai.serving import (
    CHAT,
    DEADLINE,
    MODEL,
    QUESTION,
    Gate,
    Talker,
    api,
    becomes_idle,
    body,
    data_url,
    loaded,
    picture,
    reaches,
    served,
    user,
)
from tests.llava.test_images import EXIF_ORIENTATION, encode, png_header

LIMITS = RequestLimits(
    max_body=400_000, max_images=2, max_prompt=2000, image=ImageLimits(max_pixels=1_000_000, max_bytes=200_000)
)


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[ChatEngine, httpx.Client]]:
    with api(limits=LIMITS) as pair:
        yield pair


@pytest.fixture(scope="module")
def engine(running: tuple[ChatEngine, httpx.Client]) -> ChatEngine:
    return running[0]


@pytest.fixture(scope="module")
def client(running: tuple[ChatEngine, httpx.Client]) -> httpx.Client:
    return running[1]


def error_of(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The error of a reply, which must have OpenAI's shape."""
    reply = response.json()
    assert (response.status_code, reply["error"]["code"]) == (status, code)
    assert set(reply) == {"error", "text", "error_code"}
    assert set(reply["error"]) == {"message", "type", "param", "code"}
    assert reply["text"] == reply["error"]["message"]
    return reply["error"]


def events(response: httpx.Response) -> list[str]:
    """The data of server-sent events."""
    assert response.headers["content-type"].startswith("text/event-stream")
    *blocks, rest = response.text.split("\n\n")
    assert rest == ""
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    return [block.removeprefix("data: ") for block in blocks]


# Events


def test_a_stream_has_the_form_that_clients_parse(client: httpx.Client) -> None:
    response = client.post(CHAT, json=body(stream=True, stream_options={"include_usage": True}))
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


# Failures of the model


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [(RuntimeError("/secret/path"), 500, "model_failed"), (torch.OutOfMemoryError("0x7f"), 503, "out_of_memory")],
)
def test_a_failure_in_mid_stream_is_the_last_event(failure: Exception, status: int, code: str) -> None:
    with api() as (engine, client):
        Talker(engine, "a red circle", failure)
        *chunks, last = events(client.post(CHAT, json=body(stream=True)))
        assert "".join(json.loads(chunk)["choices"][0]["delta"]["content"] for chunk in chunks) == "a red circle"
        assert json.loads(last)["error"]["code"] == code
        assert "secret" not in last and "0x7f" not in last
        whole = error_of(client.post(CHAT, json=body()), status, code)
        assert whole["type"] == "server_error"
        assert whole == json.loads(last)["error"]


def test_the_next_request_after_a_failure_is_answered() -> None:
    with api() as (engine, client):
        Talker(engine, "a", RuntimeError("once"))
        error_of(client.post(CHAT, json=body()), 500, "model_failed")
        del engine._generate
        assert client.post(CHAT, json=body()).json()["choices"][0]["message"]["content"].startswith("a purple")


def test_a_fault_of_the_server_is_told_without_its_words(client: httpx.Client, engine: ChatEngine) -> None:
    with patch.object(engine, "asubmit", side_effect=RuntimeError("/secret/path")):
        response = client.post(CHAT, json=body())
    assert error_of(response, 500, "internal_error")["message"] == "the server failed; its log says why"


# Clients that leave


@pytest.mark.parametrize("stream", [False, True])
def test_the_answer_of_a_client_that_has_gone_is_cancelled(stream: bool) -> None:
    with api() as (engine, client):
        talker = Talker(engine, "a red circle")
        with leaving(client, body(stream=stream)) as connection:
            assert reaches(engine, lambda: engine.running == 1)
            if stream:
                assert b"circle" in read_until(connection, b"circle")
        assert becomes_idle(engine)
        assert [answer.finish_reason for answer in talker.answers] == ["cancelled"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_whose_client_has_gone_waits_no_more(stream: bool) -> None:
    with api() as (engine, client), Gate(engine) as gate, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, CHAT, json=body())
        assert gate.reached.wait(DEADLINE)
        with leaving(client, body(stream=stream)):
            assert gate.await_submitted(2)
        assert reaches(engine, lambda: engine.waiting == 0)
        gate.opened.set()
        assert first.result(DEADLINE).status_code == 200
        assert gate.batches == [1]


class leaving:
    """Sends a request over a connection of its own, and goes away at the end, whatever has come."""

    def __init__(self, client: httpx.Client, request: dict[str, Any]) -> None:
        self.url, self.request = client.base_url, json.dumps(request).encode()

    def __enter__(self) -> socket.socket:
        self.connection = socket.create_connection((self.url.host, self.url.port), DEADLINE)
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        self.connection.sendall(f"{head}Content-Length: {len(self.request)}\r\n\r\n".encode() + self.request)
        return self.connection

    def __exit__(self, *error: object) -> None:
        self.connection.close()


def read_until(connection: socket.socket, word: bytes) -> bytes:
    received = b""
    while word not in received and (data := connection.recv(4096)):
        received += data
    return received


# Full queues, and the end


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue_says_when_to_come_again(stream: bool) -> None:
    with api(engine_limits=EngineLimits(max_waiting=1)) as (engine, client):
        with Gate(engine) as gate, ThreadPoolExecutor(2) as pool:
            taken = [pool.submit(client.post, CHAT, json=body())]
            assert gate.reached.wait(DEADLINE)
            taken.append(pool.submit(client.post, CHAT, json=body()))
            assert gate.await_submitted(2)
            refused = client.post(CHAT, json=body(stream=stream))
            assert error_of(refused, 429, "overloaded")["type"] == "rate_limit_error"
            assert int(refused.headers["retry-after"]) >= 1
            gate.opened.set()
            assert [future.result(DEADLINE).status_code for future in taken] == [200, 200]
        assert client.post(CHAT, json=body()).status_code == 200


def test_a_server_that_shuts_down_is_not_healthy_but_ends_its_answers() -> None:
    with api() as (engine, client), Gate(engine) as gate, ThreadPoolExecutor(2) as pool:
        assert client.get("/health").json() == {"status": "ok"}
        taken = pool.submit(client.post, CHAT, json=body())
        assert gate.reached.wait(DEADLINE)
        closing = pool.submit(engine.close)
        assert reaches(engine, lambda: engine.closed)
        health = client.get("/health")
        assert error_of(health, 503, "shutting_down")["type"] == "server_error"
        assert int(health.headers["retry-after"]) >= 1
        error_of(client.post(CHAT, json=body()), 503, "shutting_down")
        gate.opened.set()
        assert taken.result(DEADLINE).json()["choices"][0]["finish_reason"] == "stop"
        closing.result(DEADLINE)


# Pictures


def gif() -> bytes:
    frames = [Image.new("P", (32, 32), colour) for colour in range(3)]
    return encode(frames[0], "GIF", save_all=True, append_images=frames[1:])


def rotated() -> bytes:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    return encode(picture(), "JPEG", quality=95, exif=exif)


GOOD = {
    "animated GIF": gif,
    "16 bits": lambda: encode(Image.new("I;16", (40, 40), 40_000)),
    "CMYK": lambda: encode(Image.new("CMYK", (40, 40), (0, 200, 100, 0)), "JPEG"),
    "EXIF-rotated": rotated,
    "1-bit": lambda: encode(Image.new("1", (40, 40))),
    "transparent": lambda: encode(Image.new("RGBA", (40, 40), (1, 2, 3, 4))),
    "64 to 1": lambda: encode(Image.new("L", (640, 10))),
}


@pytest.mark.parametrize("data", GOOD.values(), ids=GOOD)
def test_an_uncommon_picture_is_seen(client: httpx.Client, data: Callable[[], bytes]) -> None:
    reply = client.post(CHAT, json=body(user(QUESTION, data_url(data())), max_tokens=2))
    assert reply.status_code == 200, reply.text
    assert 1 <= reply.json()["usage"]["prompt_tokens_details"]["image_tokens"] <= 128


def test_a_rotated_picture_is_seen_upright(client: httpx.Client) -> None:
    upright = encode(Image.open(BytesIO(rotated())).transpose(Image.Transpose.ROTATE_270), "PNG")
    found, expected = (client.post(CHAT, json=body(user(QUESTION, data_url(d)))).json() for d in (rotated(), upright))
    assert found["choices"][0]["message"] == expected["choices"][0]["message"]


BAD = {
    "1x1": (lambda: data_url(encode(Image.new("RGB", (1, 1)))), "1x1 pixels; each side needs at least 4"),
    "20000x10": (lambda: data_url(encode(Image.new("1", (20_000, 10)))), "20000x10 pixels; each side may have at most"),
    "65 to 1": (lambda: data_url(encode(Image.new("L", (650, 10)))), "650x10 pixels; one side may be at most 64 times"),
    "truncated": (lambda: data_url(encode(picture())[:900]), "not a readable image"),
    "too many pixels": (lambda: data_url(png_header(1500, 1000)), "1500x1000 pixels; at most 1,000,000 pixels"),
    "bomb": (lambda: data_url(png_header(16_000, 16_000)), "more than 1,000,000 pixels"),
    "file too large": (lambda: data_url(b"P6" + bytes(200_001)), "larger than 200,000 bytes"),
    "broken base64": (lambda: "data:image/png;base64,???", "base64 text is broken"),
    "not base64": (lambda: "data:image/png,abc", "a data: URL must read data:image/...;base64,..."),
    "no image": (lambda: data_url(b"hello"), "not a readable image"),
    "empty": (lambda: data_url(b""), "not a readable image"),
    "SVG": (lambda: data_url(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"), "not a readable image"),
    "file:": (lambda: "file:///etc/passwd", "file: URLs are not allowed"),
    "path": (lambda: "/etc/passwd", "local image files are not allowed here"),
    "no URL": (lambda: "", "local image files are not allowed here"),
    "ftp:": (lambda: "ftp://example.org/a.png", "ftp: URLs are not allowed"),
    "http:": (
        lambda: "http://example.org/a.png",
        "image URLs are not allowed here; send the picture itself as a data: URL (data:image/png;base64,...), or have"
        " the server started with --allowed-media-domains HOST",
    ),
    "metadata service": (lambda: "http://169.254.169.254/latest", "image URLs are not allowed here"),
}


@pytest.mark.parametrize(("url", "words"), BAD.values(), ids=BAD)
def test_a_hostile_picture_is_refused_in_our_own_words(
    client: httpx.Client, engine: ChatEngine, url: Callable[[], str], words: str
) -> None:
    response = client.post(CHAT, json=body(user(QUESTION, data_url(), url())))
    error = error_of(response, 400, "invalid_image")
    assert words in error["message"]
    assert error["param"] == "messages[0].content[1].image_url"
    assert not re.search(r"\b0x[0-9a-f]|Traceback|PIL|BytesIO|/usr|passwd", response.text)
    assert engine.waiting == engine.running == 0


PRIVATE = [
    "http://10.0.0.1/a",
    "http://169.254.169.254/a",
    "http://[::1]/a",
    "http://0.0.0.0/a",
    "http://127.0.0.1:1/a",
]


@pytest.mark.parametrize("url", PRIVATE)
def test_an_allowed_host_must_still_be_public(url: str) -> None:
    host = httpx.URL(url).host
    with api(limits=RequestLimits(media_hosts=frozenset({host, f"[{host}]"}))) as (_, client):
        error = error_of(client.post(CHAT, json=body(user(QUESTION, url))), 400, "invalid_image")
    assert "is not a public address" in error["message"]


def test_another_host_than_the_allowed_is_not_asked() -> None:
    with api(limits=RequestLimits(media_hosts=frozenset({"example.org"}))) as (_, client):
        for url in ("http://example.com/a", "http://example.org@10.0.0.1/a", "http://10.0.0.1#example.org/a"):
            error_of(client.post(CHAT, json=body(user(QUESTION, url))), 400, "invalid_image")


# Requests that are none


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("POST", "/v1/completions", 404, "not_found"),
        ("GET", "/v1/models/gpt-5", 404, "model_not_found"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("POST", "/health", 405, "method_not_allowed"),
    ],
)
def test_paths_and_methods_that_are_none(client: httpx.Client, method: str, path: str, status: int, code: str) -> None:
    response = client.request(method, path)
    error_of(response, status, code)
    assert status != 405 or response.headers["allow"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the body: Field required"),
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
def test_a_body_that_is_no_request_is_refused(client: httpx.Client, content: bytes, words: str) -> None:
    response = client.post(CHAT, content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]


def test_a_body_of_another_kind_is_refused(client: httpx.Client) -> None:
    response = client.post(CHAT, content=json.dumps(body()), headers={"Content-Type": "text/plain"})
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
    client: httpx.Client, request_body: dict[str, Any], status: int, code: str
) -> None:
    error_of(client.post(CHAT, json=request_body), status, code)


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
def test_what_is_long_does_not_make_the_error_long(client: httpx.Client, fields: dict[str, Any]) -> None:
    response = client.post(CHAT, json=body() | fields)
    assert response.status_code in (400, 404)
    assert len(response.text) < 2000


def test_a_body_of_countless_values_is_not_even_parsed() -> None:
    with api() as (_, client), patch.object(openai_routes, "from_json", side_effect=AssertionError):
        for value in (b"[],", b"{},", b"0,"):
            content = b'{"messages": [' + value * 1_000_001 + b"0]}"
            response = client.post(CHAT, content=content, headers={"Content-Type": "application/json"})
            assert "more than 1,000,000 values" in error_of(response, 413, "request_too_large")["message"]


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
        told = client.get("/metrics").text
        assert 'llava_answers_total{finish_reason="stop"} 2.0' in told
        assert 'llava_errors_total{kind="teapot"} 1.0' in told
        error_of(client.post(CHAT, json=body(n=2)), 400, "unsupported_value")
        error_of(client.get("/nowhere"), 404, "not_found")
    engine.close()


def test_the_program_serves_what_its_flags_say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    apps: list[tuple[Any, str, int]] = []

    def serve(app: Any, listener: Listener, on_start: Any, on_stop: Any, limits: ConnectionLimits) -> None:
        assert limits.most == 77
        apps.append((app, listener.host, listener.port))
        asyncio.run(on_start())

    monkeypatch.setattr(server, "serve", serve)
    flags = "--served-model-name tiny other --api-key sesame --max-images 1 --max-batch 2 --max-waiting 3 --port 0"
    assert openai_api.main([*flags.split(), "--max-connections", "77"]) == 0
    ((app, host, port),) = apps
    told = capsys.readouterr().err
    assert host == "127.0.0.1" and port > 0
    assert f"tiny, other at http://127.0.0.1:{port}/v1" in told
    assert "anyone who reaches" not in told
    with served(app) as url, httpx.Client(base_url=url, headers={"Authorization": "Bearer sesame"}) as client:
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["tiny", "other"]
        error_of(
            client.post(CHAT, json=body(user(QUESTION, *[data_url()] * 2)) | {"model": "other"}), 400, "too_many_images"
        )
        error_of(client.get("/health"), 503, "shutting_down")  # the program has ended


def test_a_program_open_to_all_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(server, "serve", lambda *address, on_start, **options: asyncio.run(on_start()))
    for flags, warned in (("--host 0.0.0.0", True), ("--host 0.0.0.0 --api-key a", False), ("--host ::1", False)):
        assert openai_api.main([*flags.split(), "--port=0"]) == 0
        assert ("may use this server; --api-key" in caplog.text) == warned
        caplog.clear()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model-path", "/nowhere"], "/nowhere"),
        (["--no-qlip", "--alpha", "1"], "--no-qlip contradicts --alpha"),
    ],
)
def test_wrong_flags_end_the_program_in_one_line(flags: list[str], words: str, capsys: pytest.CaptureFixture) -> None:
    assert openai_api.main([*flags, "--port=0"]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("llava.serve.openai_api: error: ")
    assert words in last


def test_a_program_told_to_stop_ends_its_answers_first() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "llava.serve.openai_api", "--port", str(port)]
    request = body({"role": "user", "content": "Hello"}, temperature=2, seed=1, max_tokens=1500, stream=True)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as program:
        try:
            assert any(f"{MODEL} at http://127.0.0.1:{port}/v1" in line for line in program.stderr)
            url = f"http://127.0.0.1:{port}{CHAT}"
            with httpx.stream("POST", url, json=request, timeout=DEADLINE) as response:
                lines = response.iter_lines()
                assert any('"content":""' in line for line in lines)
                program.send_signal(signal.SIGTERM)
                assert list(lines)[-2:] == ["data: [DONE]", ""]
            assert program.wait(DEADLINE) in (0, -signal.SIGTERM)
        finally:
            program.kill()
