"""Servers let in who has a key, read no more than their limits, and tell failures to every kind of client."""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llava.images import ImageError
from llava.serve.engine.errors import EngineClosedError, GenerationError, OverloadedError, PromptTooLongError
from llava.serve.http.auth import RequireKey
from llava.serve.http.bodies import BodyLimit
from llava.serve.http.failures import Failure, RequestError, explain
from llava.serve.http.flags import API_KEY_VARIABLE, add_server_flags, api_keys, request_limits
from llava.serve.http.limits import RequestLimits


async def echo(request: Request) -> Response:
    return Response(await request.body())


ECHO = Starlette(routes=[Route("/", echo, methods=["POST"]), Route("/health", echo)])


def post(app: Any, path: str = "/", method: str = "POST", **options: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
            return await client.request(method, path, **options)

    return asyncio.run(send())


# Bodies


async def chunks(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b"12345"


@pytest.mark.parametrize(("size", "status"), [(0, 200), (2, 200), (3, 413)])
@pytest.mark.parametrize("declared", [True, False])
def test_a_body_is_read_up_to_the_limit_whether_or_not_it_says_its_length(
    size: int, status: int, declared: bool
) -> None:
    reply = post(BodyLimit(ECHO, 10, 5), content=b"12345" * size if declared else chunks(size))
    assert reply.status_code == status
    if status == 200:
        assert reply.content == b"12345" * size
    else:
        assert reply.json()["error"]["message"] == "the request's body is larger than 10 bytes"


def test_a_body_that_does_not_arrive_is_given_up() -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"1"
        await asyncio.Event().wait()

    reply = post(BodyLimit(ECHO, 10, 0.05), content=slow())
    assert reply.status_code == 408
    assert reply.json()["error"]["code"] == "request_timeout"


def test_a_body_of_countless_values_is_not_passed_on() -> None:
    for value in (b"[],", b"{},", b"0,"):
        reply = post(BodyLimit(ECHO, 2**26, 5), content=b"[" + value * 150_001)
        assert reply.status_code == 413
        assert reply.json()["error"]["message"] == "the body holds more than 150,000 brackets and commas"


def test_a_client_that_goes_away_amid_its_upload_is_forgotten() -> None:
    async def application(*connection: Any) -> None:
        raise AssertionError("called")

    async def send(message: Any) -> None:
        raise AssertionError("answered")

    messages = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(messages)

    scope = {"type": "http", "headers": []}
    asyncio.run(BodyLimit(application, 10, 5)(scope, receive, send))


# Keys


@pytest.mark.parametrize("key", ["", " ", "one ", " one", "one\r", "o ne", "clé"])
def test_a_key_that_lets_everybody_in_or_that_no_header_carries_is_refused(
    key: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = "may not be empty, and may hold ASCII letters, digits and signs only, without blanks"
    with pytest.raises(ValueError, match=rule):
        RequireKey(ECHO, ["one", key])
    with pytest.raises(SystemExit):
        parse("--api-key", key)
    said = capsys.readouterr().err
    assert rule in said and not (key.strip() and key in said)
    monkeypatch.setenv(API_KEY_VARIABLE, "one clé")
    with pytest.raises(ValueError, match=r"^\$LLAVA_API_KEY: a key may not be empty.*blanks$"):
        api_keys(parse())


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer one"}, 200),
        ({"Authorization": "bearer  two"}, 200),
        ({"Authorization": "Bearer tw"}, 401),
        ({"Authorization": "Bearer twoo"}, 401),
        ({"Authorization": "Bearer "}, 401),
        ({"Authorization": "Basic two"}, 401),
        ({"Authorization": "Bearer \u00e9".encode("latin-1")}, 401),
    ],
)
def test_one_of_the_keys_opens(headers: dict[str, Any], status: int) -> None:
    reply = post(RequireKey(ECHO, ["one", "two"]), headers=headers)
    assert reply.status_code == status
    if status == 401:
        assert reply.headers["WWW-Authenticate"] == "Bearer"
        assert reply.json()["error"]["type"] == "authentication_error"


def test_without_keys_everything_is_open_and_with_keys_health_is() -> None:
    assert post(RequireKey(ECHO, [])).status_code == 200
    assert post(RequireKey(ECHO, ["one"]), "/health", "GET").status_code == 200


# Flags


def parse(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_server_flags(parser, 8000)
    return parser.parse_args(flags)


def test_flags_become_limits() -> None:
    assert request_limits(parse()) == RequestLimits()
    limits = request_limits(
        parse("--max-body-bytes", "9", "--max-images", "2", "--allowed-media-domains", "A.org", "b")
    )
    assert (limits.max_body, limits.max_images, limits.media_hosts) == (9, 2, {"a.org", "b"})
    assert request_limits(parse("--max-image-bytes", "7", "--max-image-pixels", "8")).image.max_pixels == 8


def test_keys_come_from_the_flag_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAVA_API_KEY", "a b")
    assert api_keys(parse()) == ["a", "b"]
    assert api_keys(parse("--api-key", "c", "--api-key", "d")) == ["c", "d"]
    assert api_keys(parse("--api-key", "c", "d")) == ["c", "d"]


@pytest.mark.parametrize("host", ["https://a.org", "a.org:80", "a.org/x", "me@a.org", "", "a b"])
def test_a_host_is_named_alone(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--allowed-media-domains", host)
    assert "is not a host name; give it without scheme, port or path" in capsys.readouterr().err


def test_an_international_host_is_known_by_its_name_on_the_wire() -> None:
    assert request_limits(parse("--allowed-media-domains", "B\u00fccher.example")).media_hosts == {
        "xn--bcher-kva.example"
    }


# Failures


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (ImageError("no picture"), 400, "invalid_image"),
        (PromptTooLongError("too long"), 400, "context_length_exceeded"),
        (OverloadedError(64, 3), 429, "overloaded"),
        (EngineClosedError(), 503, "shutting_down"),
        (GenerationError(RuntimeError("CUDA"), out_of_memory=True), 503, "out_of_memory"),
        (GenerationError(RuntimeError("CUDA")), 500, "model_failed"),
        (ValueError("temperature must be at least 0, got -1"), 400, "invalid_request"),
        (RequestError(404, "model_not_found", "no model 'x'"), 404, "model_not_found"),
        (KeyError("secret"), 500, "internal_error"),
    ],
)
def test_each_error_has_its_status_kind_and_text(error: Exception, status: int, kind: str) -> None:
    failure = explain(error)
    assert (failure.status, failure.kind) == (status, kind)
    assert "secret" not in failure.message
    assert "CUDA" not in failure.message
    body = failure.body("images")
    assert body["error"] == {"message": failure.message, "type": failure.type, "param": "images", "code": kind}
    assert (body["text"], body["error_code"]) == (failure.message, 1)  # what LLaVA's clients look for


def test_who_is_to_try_again_is_told_when() -> None:
    assert explain(OverloadedError(64, 3)).headers == {"Retry-After": "3"}
    assert Failure(400, "invalid_image", "no").headers == {}


def test_the_log_holds_what_the_client_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        explain(GenerationError(RuntimeError("at 0x7f00")))
        explain(ValueError("the client's fault"))
    (record,) = caplog.records
    assert record.exc_info[1].__cause__.args == ("at 0x7f00",)
