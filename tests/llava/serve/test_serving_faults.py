"""Controller and workers as programs: what clients see when one of them is killed, stopped or started again."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest

from llava.serve.workers.controller_app import create_app
from llava.serve.workers.dispatcher import Dispatcher, Timeouts
from llava.serve.workers.registry import Registry
from tests.llava.serve import upstream
from tests.llava.serve.openai.serving import served
from tests.llava.serve.programs import CONTROLLER, WORKER, Program, eventually, free_port, running
from tests.llava.serve.slow_worker import said

LONG = 600  # tokens: three seconds


@contextmanager
def controller(port: int) -> Iterator[Program]:
    with running(CONTROLLER, port) as program:
        program.says("listening")
        yield program


def worker(port: int, controller_port: int) -> Any:
    address = f"http://localhost:{controller_port}"
    flags = ["--controller-address", address, "--worker-address", f"http://localhost:{port}", "--model-name", "slow"]
    return running(WORKER, port, *flags)


@pytest.fixture(autouse=True)
def one_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def ports() -> list[int]:
    return [free_port() for _ in range(3)]


def asking(url: str, tokens: int = LONG) -> Iterator[dict[str, Any]]:
    return upstream.raw_chunks(url, {"model": "slow", "prompt": "Hi ", "max_new_tokens": tokens})


def asked(url: str, tokens: int = LONG) -> tuple[Iterator[dict[str, Any]], dict[str, Any]]:
    """A stream that has begun to answer, and the chunk that shows it."""
    chunks = asking(url, tokens)
    return chunks, next(chunk for chunk in chunks if len(chunk["text"]) > 10)


def check_refusals(url: str) -> None:
    """A server that is to stop says so to those who ask anything new, and when to ask again."""
    assert httpx.get(url + "/health").status_code == 503
    reply = httpx.post(url + "/worker_generate_stream", json={"model": "slow", "prompt": "Hi "})
    assert (reply.status_code, reply.headers["Retry-After"]) == (503, "10")
    assert json.loads(reply.content.removesuffix(b"\0"))["error"]["code"] == "shutting_down"


def queue_of(url: str) -> int:
    return int(httpx.post(url + "/worker_get_status").json()["queue_length"])


def test_the_life_of_a_controller_and_two_workers(ports: list[int]) -> None:
    """One long story, since programs take seconds to start; each step checks one promise."""
    gate, first, second = ports
    with (
        controller(gate) as front,
        worker(first, gate) as one,
        worker(second, gate) as two,
        ThreadPoolExecutor() as pool,
    ):
        front.says("registered http", times=2)
        assert upstream.models_of(front.url) == ["slow"]
        assert {upstream.address_of(front.url, "slow") for _ in range(2)} == {one.url, two.url}

        # an answer comes whole, by the controller as well as directly
        for url in (front.url, one.url):
            assert list(asking(url, 50))[-1]["text"] == "Hi " + said(50)

        # a client that goes away during an answer stops the model behind both servers
        chunks, _ = asked(front.url)
        assert queue_of(one.url) + queue_of(two.url) == 1
        chunks.close()  # type: ignore[attr-defined]
        eventually(lambda: queue_of(one.url) + queue_of(two.url) == 0)

        # a worker that is asked to stop ends its answers, takes no more, and is no longer offered
        streams = [asked(front.url) for _ in range(2)]
        assert (queue_of(one.url), queue_of(two.url)) == (1, 1)
        one.signal(signal.SIGTERM)
        front.says(f"dropped {one.url}: it has unregistered")
        check_refusals(one.url)
        assert {upstream.address_of(front.url, "slow") for _ in range(3)} == {two.url}
        assert list(asking(front.url, 5))[-1]["text"] == "Hi " + said(5)
        for chunks, _ in streams:
            assert list(chunks)[-1]["text"] == "Hi " + said(LONG)
        assert one.has_ended()

        # a worker that dies during an answer: an error chunk; and the next request goes to another one
        with worker(first, gate) as again:
            front.says(f"registered {one.url}", times=2)
            upstream.models_of(front.url)  # asks all for their queues
            streams = [asked(front.url) for _ in range(2)]
            assert (queue_of(again.url), queue_of(two.url)) == (1, 1)
            again.signal(signal.SIGKILL)
            last = sorted((list(chunks)[-1] for chunks, _ in streams), key=lambda chunk: chunk["error_code"])
            assert [chunk["error_code"] for chunk in last] == [0, 3]
            assert last[0]["text"] == "Hi " + said(LONG)
            assert "gone" in last[1]["text"]
            for _ in range(3):
                assert list(asking(front.url, 5))[-1]["text"] == "Hi " + said(5)
            assert {upstream.address_of(front.url, "slow") for _ in range(3)} == {two.url}

        # a controller that is asked to stop ends its answers; started again, it knows its workers again
        chunks, _ = asked(front.url)
        direct = pool.submit(lambda: list(asking(two.url)))  # answered after the other, and so beyond the restart
        front.signal(signal.SIGTERM)
        eventually(lambda: httpx.get(front.url + "/health").status_code == 503)
        check_refusals(front.url)
        assert list(chunks)[-1]["text"] == "Hi " + said(LONG)
        assert front.has_ended()
        with controller(gate) as restarted:
            assert list(asking(restarted.url, 5))[-1]["text"] == "Hi " + said(5)  # waits for the worker's heartbeat
            assert upstream.models_of(restarted.url) == ["slow"]
            assert direct.result()[-1]["text"] == "Hi " + said(LONG)


def test_a_worker_program_is_stopped_before_and_amid_its_answer(ports: list[int]) -> None:
    """By SIGSTOP: the system still takes connections for it, and nobody answers."""
    timeouts = Timeouts(registration_wait=0, first_frame=0.5, frame_gap=1, liveness=0.5)
    registry = Registry()
    app = create_app(Dispatcher(registry, timeouts=timeouts), on_loopback=True)
    with served(app) as url, ExitStack() as stack:
        flags = ["--controller-address", url, "--model-name", "slow"]
        programs = [
            stack.enter_context(running(WORKER, port, *flags, "--worker-address", f"http://localhost:{port}"))
            for port in ports[:2]
        ]
        workers = {program.url: program for program in programs}
        eventually(lambda: len(registry.workers()) == 2)

        def ask(tokens: int) -> Any:
            return upstream.raw_chunks(url, {"model": "slow", "prompt": "Hi ", "max_new_tokens": tokens})

        upstream.address_of(url, "slow")
        turns = sorted(registry.workers().items(), key=lambda item: item[1].turn)
        (next_one, _), (other, _) = turns  # they take turns
        workers[next_one].signal(signal.SIGSTOP)
        assert list(ask(5))[-1]["text"] == "Hi " + said(5)
        assert list(registry.workers()) == [other]

        workers[next_one].signal(signal.SIGCONT)
        eventually(lambda: len(registry.workers()) == 2)  # its heart beats again

        workers[next_one].signal(signal.SIGTERM)
        eventually(lambda: len(registry.workers()) == 1)
        chunks = ask(1000)
        next(chunk for chunk in chunks if len(chunk["text"]) > 10)
        workers[other].signal(signal.SIGSTOP)
        last = list(chunks)[-1]
        assert (last["error_code"], last["error"]["code"]) == (3, "worker_unreachable")
        assert registry.workers() == {}
