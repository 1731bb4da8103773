"""The API on Ray Serve: two replicas share the load, and when one dies the other continues."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import ray
from ray import serve

from llava.serve.http.flags import API_KEY_VARIABLE
from llava.serve.ray_app import Replica, app, deployment, flags_of

DEADLINE = 600  # seconds
KEY = "a-key-for-tests"


class MarkedReplica(Replica):
    """A replica whose replies tell which process gave them."""

    def __serve_build_asgi_app__(self) -> Any:
        inner = super().__serve_build_asgi_app__()

        async def marked(scope: Any, receive: Any, send: Any) -> None:
            async def mark(message: Any) -> None:
                if message["type"] == "http.response.start":
                    message["headers"] = [*message["headers"], (b"x-process", str(os.getpid()).encode())]
                await send(message)

            await inner(scope, receive, mark)

        return marked


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(API_KEY_VARIABLE, KEY)  # its processes have it from the node
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        flags = flags_of({"served_model_name": ["demo"], "max_images": 1, "device": "cpu"})
        two = deployment(flags, MarkedReplica).options(num_replicas=2, health_check_period_s=1)
        serve.run(two.bind(flags), route_prefix="/llm")
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}/llm", headers=headers, timeout=DEADLINE, trust_env=False
        ) as connected:
            yield connected
    finally:
        ray.shutdown()


def chat(client: httpx.Client, text: str = "What is in the picture?", **fields: Any) -> httpx.Response:
    body = {"model": "demo", "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 8}
    return client.post("/v1/chat/completions", json={**body, **fields})


def processes(client: httpx.Client, count: int) -> list[int]:
    """The processes that answer some requests, in order."""
    found = []
    for _ in range(count):
        reply = chat(client)
        if reply.status_code == 200:
            found.append(int(reply.headers["x-process"]))
    return found


def test_answers_stream(client: httpx.Client) -> None:
    body = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}], "stream": True, "max_tokens": 8}
    with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        lines = [line for line in reply.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert len(lines) > 2


@pytest.mark.parametrize(
    ("fields", "status", "kind"),
    [
        ({"model": "other"}, 404, "model_not_found"),
        ({"max_tokens": 100_000}, 400, "context_length_exceeded"),
        ({"temperature": -1}, 400, None),
    ],
)
def test_errors_are_those_of_the_single_server(
    client: httpx.Client, fields: dict[str, Any], status: int, kind: str | None
) -> None:
    reply = chat(client, **fields)
    assert reply.status_code == status
    assert kind is None or reply.json()["error"]["code"] == kind


def test_a_key_is_needed(client: httpx.Client) -> None:
    wrong = {"Authorization": "Bearer wrong"}
    assert client.get("/v1/models", headers=wrong).status_code == 401
    assert client.get("/v1/models").json()["data"][0]["id"] == "demo"
    assert client.get("/health", headers=wrong).json() == {"status": "ok"}


def test_a_missing_route_is_named_also_under_a_prefix(client: httpx.Client) -> None:
    reply = client.post("/v1/completions", json={})
    assert reply.status_code == 404
    assert "send a chat request to /v1/chat/completions" in reply.json()["error"]["message"]


def test_both_replicas_answer_and_one_goes_on_alone(client: httpx.Client) -> None:
    deadline = time.monotonic() + DEADLINE
    seen: set[int] = set()
    while len(seen) < 2:
        assert time.monotonic() < deadline, f"only {seen} answered"
        seen.update(processes(client, 4))
    answers = {chat(client).json()["choices"][0]["message"]["content"] for _ in range(4)}
    assert len(answers) == 1
    dead = seen.pop()
    os.kill(dead, signal.SIGKILL)
    alive: list[int] = []
    while len(alive) < 10:  # what was on its way to the dead one may fail; what comes then may not
        assert time.monotonic() < deadline
        found = processes(client, 10)
        alive = found if len(found) == 10 else []
    assert dead not in alive


# Arguments


def test_arguments_become_flags() -> None:
    arguments = {"model_path": "m", "qlip": False, "load_4bit": True, "served-model-name": ["a", "b"], "alpha": 0.5}
    expected = ["--model-path=m", "--no-qlip", "--load-4bit", "--served-model-name", "a", "b", "--alpha=0.5"]
    assert flags_of(arguments) == expected
    assert flags_of({"qlip": "true", "load_4bit": "False", "alpha": None}) == ["--qlip"]  # as `serve run` gives them
    assert flags_of({"no_qlip": True, "api_key": None}) == ["--no-qlip"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"modelpath": "secret"}, "no flag for the argument 'modelpath'; did you mean model_path"),
        ({"hos": "secret"}, "no flag for the argument 'hos'"),
        ({"model_path": "false"}, "model_path is false; --model-path takes another value"),
        ({"max_batch": "x"}, "argument --max-batch: 'x' is not allowed"),
        ({"port": 99999}, "port: the address is Ray Serve's.*http_options in the config"),
        ({"host": "0.0.0.0"}, "host: the address is Ray Serve's"),
        ({"api_key": "secret"}, "api_key: Ray writes arguments to its logs; set .LLAVA_API_KEY where the nodes"),
        ({"help": True}, "no flag for the argument 'help'"),
        ({"max-connections": 5}, "max-connections: connections are Ray Serve's"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_deployed(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        app(arguments)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("flag", ["--api-key=secret", "--port=1"])
def test_flags_that_are_no_arguments_are_refused_also_as_flags(flag: str) -> None:
    with pytest.raises(ValueError, match="Ray"):
        deployment([flag])


def test_ray_serve_admits_what_the_engine_answers_and_lets_wait() -> None:
    assert deployment(flags_of({"max_batch": 3, "max_waiting": 4})).max_ongoing_requests == 15
