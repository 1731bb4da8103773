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
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        flags = flags_of({"served_model_name": ["demo"], "api_key": KEY, "max_images": 1, "device": "cpu"})
        two = deployment(flags, MarkedReplica).options(num_replicas=2, health_check_period_s=1)
        serve.run(two.bind(flags), route_prefix="/")
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=DEADLINE, trust_env=False
        ) as connected:
            yield connected
    finally:
        serve.shutdown()
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
    assert client.get("/v1/models", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert client.get("/v1/models").json()["data"][0]["id"] == "demo"


# Arguments


def test_arguments_become_flags() -> None:
    arguments = {"model_path": "m", "qlip": False, "load_4bit": True, "served-model-name": ["a", "b"], "alpha": 0.5}
    expected = ["--model-path=m", "--no-qlip", "--load-4bit", "--served-model-name", "a", "b", "--alpha=0.5"]
    assert flags_of(arguments) == expected
    assert flags_of({"qlip": "true", "load_4bit": "False", "alpha": None}) == [
        "--qlip",
        "--no-load-4bit",
    ]  # serve run's


def test_wrong_arguments_are_refused_before_anything_is_deployed() -> None:
    with pytest.raises(ValueError, match="wrong arguments among --modelpath; see") as refused:
        app({"modelpath": "secret"})
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("arguments", [{"port": 99999}, {"host": "0.0.0.0"}])
def test_an_address_is_ray_serves_own(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="the address is Ray Serve's.*http_options in the config"):
        app(arguments)


def test_several_keys_are_a_list() -> None:
    assert (
        deployment(flags_of({"api_key": ["one", "two"], "max_batch": 3, "max_waiting": 4})).max_ongoing_requests == 15
    )
