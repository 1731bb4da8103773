"""The OpenAI-compatible API on a real server over loopback, for tests: engine, address, pictures, deadlines."""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import cache
from typing import Any

import httpx
import uvicorn
from PIL import Image

from llava.images import load_image
from llava.model.builder import load_pretrained_model
from llava.serve.engine import ChatEngine
from llava.serve.engine.answer_stream import AnswerStream
from llava.serve.engine.params import EngineLimits
from llava.serve.engine.scheduler import Scheduler
from llava.serve.http.server import Hook, Server
from llava.serve.openai.app import openai_app
from llava.serve.openai.chat import APISettings
from llava.utils import demo_model_path, demo_picture_paths

MODEL = "llava-demo"
CHAT = "/v1/chat/completions"
DEADLINE = 600  # seconds; a test that waits longer has failed
QUESTION = "What is in the picture?"


@cache
def loaded() -> tuple[Any, ...]:
    """The embedded model, loaded once for all tests."""
    return load_pretrained_model(demo_model_path(), device="cpu")


def picture(index: int = 0) -> Image.Image:
    return load_image(demo_picture_paths()[index])


def data_url(data: bytes | None = None, media: str = "image/png") -> str:
    """A picture file as a data: URL; the first of the demo's, by default."""
    data = demo_picture_paths()[0].read_bytes() if data is None else data
    return f"data:{media};base64,{base64.b64encode(data).decode()}"


def user(text: str = QUESTION, *urls: str) -> dict[str, Any]:
    """A user's message: pictures, the demo's first by default, and text."""
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls or [data_url()]]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def body(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A greedy request."""
    return {"model": MODEL, "messages": list(messages or [user()]), "temperature": 0, **fields}


@contextmanager
def served(
    app: Any, port: int = 0, on_start: Hook | None = None, on_stop: Hook | None = None, host: str = "127.0.0.1"
) -> Iterator[str]:
    """Serves an application on a port of loopback, a free one by default; gives its address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family)  # listens already, so that nobody needs to wait for it
    server = Server(uvicorn.Config(app, log_level="critical"), on_start, on_stop)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(DEADLINE)
        assert not thread.is_alive()


@contextmanager
def api(
    engine: ChatEngine | None = None, engine_limits: EngineLimits | None = None, **settings: Any
) -> Iterator[tuple[ChatEngine, httpx.Client]]:
    """The API of an engine, by default the embedded model's, and a client of it."""
    engine = engine or ChatEngine(*loaded(), limits=engine_limits)
    app = openai_app(engine, APISettings((MODEL,), **settings))
    with served(app) as url, httpx.Client(base_url=url, timeout=DEADLINE) as client:
        yield engine, client
    engine.close()


class Gate:
    """Holds an engine's model back until it is opened, and notes the size of each group that starts or joins one."""

    def __init__(self, engine: ChatEngine, opens_at: int = 0) -> None:
        """
        Args:
            engine: Whose model.
            opens_at: Number of submitted requests at which it opens by itself.
        """
        self.opened, self.reached, self.batches = threading.Event(), threading.Event(), list[int]()
        self.engine, self.opens_at, self.submitted = engine, opens_at, 0
        self.counting = threading.Condition()

    def held(self, batch: Sequence[AnswerStream]) -> None:
        self.batches.append(len(batch))
        self.reached.set()
        assert self.opened.wait(DEADLINE)
        ChatEngine._generate(self.engine, batch)

    def take(self, *bounds: Any) -> list[AnswerStream]:
        joining = Scheduler.take(self.engine.scheduler, *bounds)
        self.batches += [len(joining)] if joining else []
        return joining

    def enqueue(self, *request: Any) -> AnswerStream:
        answer = ChatEngine._enqueue(self.engine, *request)
        with self.counting:
            self.submitted += 1
            self.counting.notify_all()
            if self.submitted == self.opens_at:
                self.opened.set()
        return answer

    def await_submitted(self, count: int, requests: Sequence[Future[Any]] = ()) -> bool:
        """Waits until `count` requests have been submitted; false once one of `requests` has ended, or the deadline
        is past."""
        for request in requests:
            request.add_done_callback(self.note_end)
        with self.counting:
            self.counting.wait_for(lambda: self.submitted >= count or any(map(Future.done, requests)), DEADLINE)
            return self.submitted >= count

    def note_end(self, request: Future[Any]) -> None:
        with self.counting:
            self.counting.notify_all()

    def __enter__(self) -> Gate:
        self.engine._generate, self.engine._enqueue = self.held, self.enqueue  # type: ignore[method-assign]
        self.engine.scheduler.take = self.take  # type: ignore[method-assign]
        return self

    def __exit__(self, *error: object) -> None:
        self.opened.set()
        del self.engine._generate, self.engine._enqueue, self.engine.scheduler.take  # those of its class are seen again


def reaches(engine: ChatEngine, state: Callable[[], bool]) -> bool:
    """Waits until an engine's counts are as asked; false once the deadline is past."""
    with engine.scheduler._lock:
        return engine.scheduler._lock.wait_for(state, DEADLINE)


def becomes_idle(engine: ChatEngine) -> bool:
    """Waits until nothing waits or runs; false once the deadline is past."""
    return reaches(engine, lambda: engine.waiting == engine.running == 0)


class Talker:
    """Stands in for an engine's model: says some tokens, then waits until the answer is cancelled, or fails."""

    def __init__(self, engine: ChatEngine, text: str, failure: Exception | None = None) -> None:
        self.ids = engine.tokenizer(text, add_special_tokens=False).input_ids
        self.failure, self.answers = failure, list[AnswerStream]()
        engine._generate = self.talk  # type: ignore[method-assign]

    def talk(self, batch: Sequence[AnswerStream]) -> None:
        self.answers += batch
        for answer in batch:
            answer.note_start(0, 0, 0)
            for token in self.ids:
                answer.row.take(token)
        if self.failure is not None:
            raise self.failure
        for answer in batch:
            assert answer.row.cancelled.wait(DEADLINE)
            assert answer.row.finished()
