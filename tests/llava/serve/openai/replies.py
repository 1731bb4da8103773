"""Readers of the API's replies."""

from __future__ import annotations

from typing import Any

import httpx
from openai import OpenAI
from openai.types.chat import ChatCompletion

from tests.llava.serve.openai.serving import (
    body,
)


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


def ask(client: OpenAI, *messages: dict[str, Any], **fields: Any) -> ChatCompletion:
    return client.chat.completions.create(**body(*messages, **fields))


def text(completion: ChatCompletion) -> str:
    (choice,) = completion.choices
    assert choice.message.role == "assistant"
    return choice.message.content
