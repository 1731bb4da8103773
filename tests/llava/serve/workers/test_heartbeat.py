"""A worker gets into a controller's register, and back into it whenever it has fallen out; by itself or by hand."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fastapi import FastAPI

from llava.serve import register_worker
from llava.serve.workers.controller_app import create_app
from llava.serve.workers.dispatcher import Dispatcher, Timeouts
from llava.serve.workers.heartbeat import Registration
from llava.serve.workers.protocol import WorkerStatus
from llava.serve.workers.registry import Registry
from tests.llava.serve.openai.serving import DEADLINE, served

WORKER = "http://127.0.0.1:1001"
STATUS = WorkerStatus(model_names=["m"], speed=1, queue_length=3)


class Watched(Registry):
    """A register that one can wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = threading.Condition()
        self.beats = 0

    def register(self, name: str, status: WorkerStatus, check_heart_beat: bool) -> None:
        with self.changed:
            super().register(name, status, check_heart_beat)
            self.changed.notify_all()

    def heart_beat(self, name: str, queue_length: int) -> bool:
        with self.changed:
            self.beats += 1
            self.changed.notify_all()
            return super().heart_beat(name, queue_length)

    def becomes(self, state: Callable[[], bool]) -> bool:
        """Waits until it is so; false once the deadline is past."""
        with self.changed:
            return self.changed.wait_for(state, DEADLINE)

    def has_worker(self) -> bool:
        return self.becomes(lambda: list(self.workers()) == [WORKER])


@contextmanager
def controller(registry: Registry, port: int = 0, token: str | None = None) -> Iterator[str]:
    dispatcher = Dispatcher(registry, token, Timeouts(registration_wait=0))
    with served(create_app(dispatcher, token, on_loopback=True), port) as url:
        yield url


@contextmanager
def registering(
    url: str, token: str | None = None, status: Callable[[], WorkerStatus] = lambda: STATUS
) -> Iterator[None]:
    """A worker that registers, as long as the block runs."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def make() -> Registration:
        return Registration(url, WORKER, status, token, interval=0.02)

    def run(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(DEADLINE)

    registration = run(make())
    run(registration.start())
    try:
        yield
    finally:
        run(registration.stop())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(DEADLINE)
        loop.close()


def test_a_worker_registers_and_its_heart_beats_until_it_says_goodbye() -> None:
    registry = Watched()
    with controller(registry) as url:
        with registering(url):
            assert registry.has_worker()
            assert registry.becomes(lambda: registry.beats > 3)
            assert registry.status() == STATUS
        assert registry.workers() == {}


def test_a_worker_that_stops_while_it_registers_is_not_registered() -> None:
    """The controller may be slow to take it in; goodbye comes after that."""
    app, said = FastAPI(), list[str]()

    @app.post("/receive_heart_beat")
    async def beat() -> dict[str, bool]:
        return {"exist": False}

    @app.post("/register_worker")
    async def register() -> None:
        said.append("begins")
        while "stops" not in said:
            await asyncio.sleep(0.001)
        said.append("registered")

    @app.post("/unregister_worker")
    async def unregister() -> None:
        said.append("unregistered")

    async def work(url: str) -> None:
        registration = Registration(url, WORKER, lambda: STATUS, interval=0.01)
        await registration.start()
        while "begins" not in said:
            await asyncio.sleep(0.001)
        stopping = asyncio.create_task(registration.stop())
        await asyncio.sleep(0)
        said.append("stops")
        await stopping

    with served(app) as url:
        asyncio.run(asyncio.wait_for(work(url), DEADLINE))
    assert said == ["begins", "stops", "registered", "unregistered"]


def test_a_worker_that_was_dropped_registers_again() -> None:
    registry = Watched()
    with controller(registry) as url, registering(url):
        for _ in range(3):
            assert registry.has_worker()
            registry.remove(WORKER, "a test")


def test_a_status_that_cannot_be_read_once_costs_one_heart_beat(caplog: pytest.LogCaptureFixture) -> None:
    faults = iter([ZeroDivisionError("no speed yet")])

    def status() -> WorkerStatus:
        if fault := next(faults, None):
            raise fault
        return STATUS

    registry = Watched()
    with controller(registry) as url, registering(url, status=status):
        assert registry.has_worker()
    assert "no speed yet" in caplog.text


def test_a_worker_takes_the_place_of_an_earlier_one_at_its_address(caplog: pytest.LogCaptureFixture) -> None:
    """As when a worker is killed and started again with another model before it is missed."""
    caplog.set_level(logging.INFO)
    registry = Watched()
    registry.register(WORKER, STATUS.model_copy(update={"model_names": ["earlier"]}), True)
    with controller(registry) as url, registering(url):
        assert registry.becomes(lambda: registry.models() == ["m"])
    assert f"registered {WORKER} with m" in caplog.text


def test_a_worker_finds_a_controller_that_starts_late_and_one_that_starts_again() -> None:
    with controller(Watched()) as url:
        port = int(url.rpartition(":")[2])
    with registering(url):
        for _ in range(2):
            registry = Watched()
            with controller(registry, port):
                assert registry.has_worker()


def test_the_secret_is_shown_to_the_controller_and_not_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    registry = Watched()
    with controller(registry, token="s3cret") as url:
        with registering(url, "s3cret"):
            assert registry.has_worker()
        warned = threading.Event()
        logger = logging.getLogger("llava.serve.workers.heartbeat")
        handler = logging.Handler()
        handler.emit = lambda record: warned.set()  # type: ignore[method-assign]
        logger.addHandler(handler)
        with registering(url, "guessed"):
            assert warned.wait(DEADLINE)
        logger.removeHandler(handler)
        assert registry.workers() == {}
    assert "workers need the controller's secret" in caplog.text
    assert "s3cret" not in caplog.text and "guessed" not in caplog.text


def test_a_controller_that_does_not_know_goodbye_is_none_the_worse() -> None:
    """LLaVA's own controller, as its protocol describes it."""
    app, beats, known = FastAPI(), threading.Event(), set[str]()

    @app.post("/register_worker")
    async def register(request: dict[str, Any]) -> None:
        assert set(request) == {"worker_name", "check_heart_beat", "worker_status"}
        known.add(request["worker_name"])

    @app.post("/receive_heart_beat")
    async def beat(request: dict[str, Any]) -> dict[str, bool]:
        assert request == {"worker_name": WORKER, "queue_length": 3}
        if known:
            beats.set()
        return {"exist": request["worker_name"] in known}

    with served(app) as url, registering(url):
        assert beats.wait(DEADLINE)
    assert known == {WORKER}


@pytest.mark.parametrize("reply", [None, [], {}, "text", {"exists": True}])
def test_what_answers_nonsense_is_no_controller(reply: Any, caplog: pytest.LogCaptureFixture) -> None:
    app, asked = FastAPI(), threading.Semaphore(0)

    @app.post("/receive_heart_beat")
    async def beat() -> Any:
        asked.release()
        return reply

    with served(app) as url, registering(url):
        for _ in range(2):  # it keeps trying
            assert asked.acquire(timeout=DEADLINE)
    assert "not registered" in caplog.text


# By hand


def status_server() -> FastAPI:
    app = FastAPI()

    @app.post("/worker_get_status")
    async def status() -> WorkerStatus:
        return STATUS

    return app


def test_a_worker_is_registered_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    registry = Watched()
    with controller(registry) as url, served(status_server()) as worker:
        assert register_worker.main(["--controller-address", url + "/", "--worker-name", worker + "/"]) == 0
    assert list(registry.workers()) == [worker]
    assert not registry.workers()[worker].check_heart_beat
    assert capsys.readouterr().out == f"registered {worker}\n"


def test_why_a_worker_was_not_registered_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with controller(Watched(), token="s3cret") as url:
        flags = ["--controller-address", url, "--worker-name", WORKER]
        assert register_worker.main([*flags, "--worker-token", "guessed"]) == 2
        assert register_worker.main([*flags, "--worker-token", "s3cret"]) == 2
    assert register_worker.main(["--controller-address", url, "--worker-name", WORKER]) == 2
    refused, unreachable, gone = capsys.readouterr().err.splitlines()
    said = f"register_worker: error: the controller at {url} refused: "
    assert refused.startswith(f"{said}workers need the controller's secret")
    assert unreachable.startswith(f"{said}the worker {WORKER} sends no status")
    refusal = f"[Errno {errno.ECONNREFUSED}] {os.strerror(errno.ECONNREFUSED)}"
    assert gone.startswith(f"register_worker: error: no controller answers at {url} ({refusal}); ")
    assert gone.endswith("or name another by --controller-address")
