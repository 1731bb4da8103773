"""What a worker says of itself is refused where no worker can mean it, and changes nobody else's entry."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from llava.serve.workers.protocol import WorkerStatus
from llava.serve.workers.registry import Registry
from tests.llava.serve.workers.controllers import STATUS, A, B, Setup, registration

WRONG = ["-1", "1000001", "1e308", "1e999", "NaN", "Infinity", "-Infinity", "1" + "0" * 400, "true", "null", '"many"']

JSON = {"Content-Type": "application/json"}


def heart_beat(queue: str, name: str = A) -> str:
    return f'{{"worker_name": "{name}", "queue_length": {queue}}}'


def said(reply: httpx.Response) -> str:
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_request")
    return reply.json()["error"]["message"]


@pytest.mark.parametrize("queue", [*WRONG, "1.5"])
def test_a_heartbeat_with_an_absurd_queue_is_refused_and_changes_no_entry(queue: str) -> None:
    setup = Setup().known(A, B)
    before = {name: worker.status.model_copy() for name, worker in setup.registry.workers().items()}
    message = said(setup.post("receive_heart_beat", content=heart_beat(queue), headers=JSON))
    assert "queue_length" in message
    assert {name: worker.status for name, worker in setup.registry.workers().items()} == before


@pytest.mark.parametrize(
    ("queue", "got"), [("-1", "-1"), ("1e308", "1e+308"), ("true", "True"), ("7654321", "7654321")]
)
def test_the_refusal_names_the_value_and_the_range(queue: str, got: str) -> None:
    message = said(Setup().known(A).post("receive_heart_beat", content=heart_beat(queue), headers=JSON))
    assert message == f"queue_length: must be a number from 0 to 1,000,000, got {got}"


@pytest.mark.parametrize("field", ["speed", "queue_length"])
@pytest.mark.parametrize("value", WRONG)
def test_a_registration_with_absurd_numbers_is_refused(field: str, value: str) -> None:
    setup = Setup()
    content = json.dumps(registration(A, {**STATUS, field: 0})).replace(f'"{field}": 0', f'"{field}": {value}')
    assert field in said(setup.post("register_worker", content=content, headers=JSON))
    assert setup.registry.workers() == {}


@pytest.mark.parametrize("field", ["speed", "queue_length"])
@pytest.mark.parametrize("value", WRONG)
def test_a_worker_that_tells_absurd_numbers_when_asked_tells_no_status(field: str, value: str) -> None:
    body = json.dumps({**STATUS, field: 0}).replace(f'"{field}": 0', f'"{field}": {value}')
    setup = Setup({A: lambda request: httpx.Response(200, content=body)})
    assert setup.post("register_worker", registration(A, None)).status_code == 502
    assert setup.registry.workers() == {}


@pytest.mark.parametrize(("speed", "queue"), [(0, 0), (1_000_000, 1_000_000), (0.5, 3), (5e-324, 1)])
def test_what_a_worker_can_mean_is_taken(speed: Any, queue: int) -> None:
    setup = Setup()
    status = {**STATUS, "speed": speed, "queue_length": queue}
    assert setup.post("register_worker", registration(A, status)).status_code == 200
    assert setup.post("receive_heart_beat", content=heart_beat(str(queue)), headers=JSON).json() == {"exist": True}
    assert setup.post("get_worker_address", {"model": "m"}).json() == {"address": A if speed else ""}


def test_the_sum_of_many_workers_is_a_status_that_a_worker_may_tell() -> None:
    """So that a controller above this one takes it."""
    registry = Registry()
    for index in range(30):
        names = [f"{index}-{model}" for model in range(100)]
        status = WorkerStatus(model_names=names, speed=1_000_000, queue_length=1_000_000)
        registry.register(f"http://w{index}:1", status, True)
    registry.choose("0-0")
    total = registry.status()
    assert (total.speed, total.queue_length, len(total.model_names)) == (1_000_000, 1_000_000, 1000)
    assert WorkerStatus.model_validate_json(total.model_dump_json()) == total
