"""A controller never registers at itself, and a request that comes round to a controller again ends there."""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack

import httpx
import pytest

from llava.serve import register_worker
from llava.serve.workers.controller_app import create_app
from llava.serve.workers.dispatcher import Dispatcher, Timeouts
from llava.serve.workers.frames import frame
from llava.serve.workers.protocol import WorkerStatus
from llava.serve.workers.registry import Registry
from tests.llava.serve.openai.serving import served
from tests.llava.serve.workers.controllers import ASKED, A, Setup, frames, generating, registration

STATUS = WorkerStatus(model_names=["m"], speed=1, queue_length=0)


def controller(keys: tuple[str, ...] = ()) -> tuple[Registry, object]:
    registry = Registry()
    dispatcher = Dispatcher(registry, timeouts=Timeouts(registration_wait=0))
    return registry, create_app(dispatcher, on_loopback=True, keys=keys)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.0.2", "[::1]"])
@pytest.mark.parametrize("status", [None, STATUS.model_dump()])
@pytest.mark.parametrize("keys", [(), ("k",)])
def test_a_controller_is_not_registered_with_itself(host: str, status: object, keys: tuple[str, ...]) -> None:
    registry, app = controller(keys)
    with socket.socket(socket.AF_INET6 if host == "[::1]" else socket.AF_INET) as probe:
        try:
            probe.bind((host.strip("[]"), 0))
        except OSError:
            pytest.skip(f"this machine has no {host}")
        port = probe.getsockname()[1]
    with served(app, port, host=host.strip("[]")) as url:
        reply = httpx.post(f"{url}/register_worker", json=registration(f"http://{host}:{port}", status))
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "own_address")
    assert f"http://{host}:{port} is this controller itself" in reply.json()["error"]["message"]
    assert registry.workers() == {}


def test_who_registers_it_by_hand_is_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    with served(controller()[1]) as url:
        assert register_worker.main(["--controller-address", url, "--worker-name", url]) == 2
    assert f"refused: {url} is this controller itself; name a worker" in capsys.readouterr().err


def test_another_controller_is_registered() -> None:
    registry, app = controller()
    with served(app) as url, served(controller()[1]) as below:
        assert httpx.post(f"{url}/register_worker", json=registration(below, None)).status_code == 200
    assert list(registry.workers()) == [below]


@pytest.mark.parametrize("size", [2, 3])
def test_a_circle_of_controllers_is_a_clear_error(size: int) -> None:
    made = [controller() for _ in range(size)]
    with ExitStack() as stack:
        urls = [stack.enter_context(served(app)) for _, app in made]
        for (registry, _), below in zip(made, [*urls[1:], urls[0]], strict=True):
            registry.register(below, STATUS, True)
        reply = httpx.post(f"{urls[0]}/worker_generate_stream", json=ASKED, timeout=60)
    (event,) = frames(reply)
    assert (reply.status_code, event["error_code"], event["error"]["code"]) == (508, 1, "loop_detected")
    assert f"has passed {size} controllers; they are registered with each other in a circle" in event["text"]
    assert all(registry.status().queue_length == 0 for registry, _ in made)


def test_beside_a_circle_a_worker_is_found() -> None:
    loop = httpx.Response(508, content=b'{"text": "loop", "error_code": 1}\0')
    setup = Setup({A: lambda request: loop, "http://127.0.0.1:9": generating(frame("Hi you"))})
    setup.known(A, "http://127.0.0.1:9")
    assert frames(setup.post("worker_generate_stream", ASKED)) == [{"text": "Hi you", "error_code": 0}]


def test_a_chain_of_controllers_ends_at_the_eighth() -> None:
    setup = Setup({A: generating(frame("Hi you"))}).known(A)
    passed = [str(index) for index in range(8)]
    for hops, status in ((passed[:7], 200), (passed, 508)):
        reply = setup.post("worker_generate_stream", ASKED, headers={"X-LLaVA-Hops": ",".join(hops)})
        assert reply.status_code == status
    (asked,) = setup.asked
    assert asked.headers["X-LLaVA-Hops"].split(",") == [*passed[:7], setup.dispatcher.instance]
    assert json.loads(asked.content) == ASKED
