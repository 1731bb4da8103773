"""No text from outside forges a line of a log: names are printable, and other texts are escaped."""

from __future__ import annotations

import logging
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava.serve.workers.calls import describe_error
from qlip.command import escape
from tests.llava.serve.workers.controllers import STATUS, A, Setup, ask, registration

FORGED = ["m\n2026-01-01 | INFO | dropped everything", "m\r", "\x1b[2J", "m\x00", "m\u2028", "m\u202e", "\x7f"]


def status_with(name: str) -> list[dict[str, Any]]:
    return [
        {**STATUS, "model_names": ["m", name]},
        {**STATUS, "conv_modes": {name: "plain"}},
        {**STATUS, "conv_modes": {"m": name}},
    ]


@pytest.mark.parametrize("name", FORGED)
def test_a_worker_with_an_unprintable_name_is_refused(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for status in status_with(name):
        setup = Setup({A: lambda request, status=status: httpx.Response(200, json=status)})
        reply = setup.post("register_worker", registration(A, status))
        message = reply.json()["error"]["message"]
        assert reply.status_code == 400
        assert "a name holds printable characters only" in message and message.isprintable()
        assert setup.post("register_worker", registration(A, None)).status_code == 502  # the worker is asked
        assert setup.registry.workers() == {}
    assert all(record.getMessage().isprintable() for record in caplog.records)


@pytest.mark.parametrize("name", FORGED)
def test_a_request_for_an_unprintable_name_is_refused(name: str) -> None:
    assert ask(Setup().known(A), model=name).status_code == 400


@pytest.mark.parametrize("name", ["llava-v1.5-7b", "a b", "\u6a21\u578b", "caf\u00e9 \u2013 7b", "{name}", "%s"])
def test_any_printable_name_is_taken(name: str) -> None:
    for status in status_with(name):
        assert Setup().post("register_worker", registration(A, status)).status_code == 200


def test_the_words_of_a_controller_are_one_line_in_the_log_of_a_worker() -> None:
    request = httpx.Request("POST", A)
    reply = httpx.Response(400, json={"error": {"message": "no\nforged \x1b[2J"}}, request=request)
    error = httpx.HTTPStatusError("400", request=request, response=reply)
    assert describe_error(error) == r"no\nforged \x1b[2J"


@given(st.text())
def test_what_is_escaped_is_printable_and_what_is_printable_stays(text: str) -> None:
    assert escape(text).isprintable()
    assert escape(escape(text)) == escape(text)
    if text.isprintable():
        assert escape(text) == text
