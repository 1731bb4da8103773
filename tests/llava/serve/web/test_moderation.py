"""Moderation of questions: what it asks of its service, and what it lets pass."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from llava.serve.http.failures import RequestError
from llava.serve.web.moderation import Moderator
from tests.llava.serve.openai.serving import served


@contextmanager
def moderation(reply: Response) -> Iterator[tuple[Moderator, list[Any]]]:
    app, asked = FastAPI(), list[Any]()

    @app.post("/v1/moderations")
    async def moderations(request: Request) -> Response:
        asked.append((request.headers["authorization"], await request.json()))
        return reply

    with served(app) as url:
        yield Moderator("secret", url + "/v1/"), asked


def test_a_question_passes_unless_it_is_flagged() -> None:
    with moderation(JSONResponse({"results": [{"flagged": False}]})) as (moderator, asked):
        asyncio.run(moderator.check("Hello?"))
    assert asked == [("Bearer secret", {"model": "omni-moderation-latest", "input": "Hello?"})]
    with (
        moderation(JSONResponse({"results": [{"flagged": True}]})) as (moderator, _),
        pytest.raises(RequestError, match="does not pass moderation"),
    ):
        asyncio.run(moderator.check("Hello?"))


@pytest.mark.parametrize(
    "reply", [JSONResponse({"error": "secret"}, 401), JSONResponse({"results": []}), Response(b"<html>")]
)
def test_without_a_verdict_nothing_passes(reply: Response) -> None:
    with moderation(reply) as (moderator, _), pytest.raises(RequestError, match="could not be checked") as caught:
        asyncio.run(moderator.check("Hello?"))
    assert "secret" not in str(caught.value)


def test_the_environment_names_the_key_and_another_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    assert Moderator.from_environment().url == "https://api.openai.com/v1/moderations"
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:1/v1/")
    assert Moderator.from_environment().url == "http://localhost:1/v1/moderations"
