"""The API when the model fails, a client disconnects, the queue is full or the server stops."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import patch

import httpx
import pytest
import torch

from llava.serve.engine import ChatEngine
from llava.serve.engine.params import EngineLimits
from tests.llava.serve.openai.replies import error_of, events
from tests.llava.serve.openai.serving import (
    CHAT,
    DEADLINE,
    Gate,
    Talker,
    api,
    becomes_idle,
    body,
    reaches,
)

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


def test_a_fault_of_the_server_is_told_without_its_words(
    limited_client: httpx.Client, limited_engine: ChatEngine
) -> None:
    with patch.object(limited_engine, "asubmit", side_effect=RuntimeError("/secret/path")):
        response = limited_client.post(CHAT, json=body())
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
    with api() as (engine, client), ThreadPoolExecutor(1) as pool, Gate(engine) as gate:
        first = pool.submit(client.post, CHAT, json=body(max_tokens=2))
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
        with ThreadPoolExecutor(2) as pool, Gate(engine) as gate:
            taken = [pool.submit(client.post, CHAT, json=body(max_tokens=2))]
            assert gate.reached.wait(DEADLINE)
            taken.append(pool.submit(client.post, CHAT, json=body(max_tokens=2)))
            assert gate.await_submitted(2, taken)
            refused = client.post(CHAT, json=body(stream=stream))
            assert error_of(refused, 429, "overloaded")["type"] == "rate_limit_error"
            assert int(refused.headers["retry-after"]) >= 1
            gate.opened.set()
            assert [future.result(DEADLINE).status_code for future in taken] == [200, 200]
        assert client.post(CHAT, json=body(max_tokens=2)).status_code == 200


def test_a_server_that_shuts_down_is_not_healthy_but_ends_its_answers() -> None:
    with api() as (engine, client), ThreadPoolExecutor(2) as pool, Gate(engine) as gate:
        assert client.get("/health").json() == {"status": "ok"}
        assert client.head("/health").status_code == 200
        taken = pool.submit(client.post, CHAT, json=body())
        assert gate.reached.wait(DEADLINE)
        closing = pool.submit(engine.close)
        assert reaches(engine, lambda: engine.closed)
        health = client.get("/health")
        assert client.head("/health").status_code == 503
        assert error_of(health, 503, "shutting_down")["type"] == "server_error"
        assert int(health.headers["retry-after"]) >= 1
        error_of(client.post(CHAT, json=body()), 503, "shutting_down")
        gate.opened.set()
        assert taken.result(DEADLINE).json()["choices"][0]["finish_reason"] == "stop"
        closing.result(DEADLINE)
