"""A client of the controller and its workers: sends good requests and checks their answers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx

from llava.conversation import conv_templates
from llava.serve.workers.frames import read_frames
from llava.utils import demo_picture_path
from scripts.soak import hostile
from scripts.soak.programs import DEADLINE, Program

MODEL = "llava-demo"
QUESTION = "What is in the picture?"


class Client:
    """Sends good requests and compares their answers with the first ones."""

    def __init__(self, http: httpx.AsyncClient, controller: Program, workers: Sequence[Program]) -> None:
        self.http, self.controller, self.workers = http, controller, workers
        self.picture = hostile.encoded(demo_picture_path().read_bytes())
        conversation = conv_templates["vicuna_v1"].copy()
        conversation.append_message(conversation.roles[0], f"<image>\n{QUESTION}")
        conversation.append_message(conversation.roles[1], None)
        self.prompt = conversation.get_prompt()
        self.answer = self.text_answer = ""

    def request(self, **fields: Any) -> dict[str, Any]:
        """Makes a good request in LLaVA's protocol."""
        return {**hostile.good(hostile.LLAVA, MODEL, self.picture, QUESTION, self.prompt), **fields}

    def long_request(self) -> dict[str, Any]:
        """Makes a request with a long answer: at this temperature the end token is hardly ever drawn."""
        return self.request(temperature=50.0, max_new_tokens=512, seed=1)

    @asynccontextmanager
    async def stream(self, request: dict[str, Any]) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """Streams an answer's frames from the controller; leaving the context early disconnects."""
        async with self.http.stream("POST", f"{self.controller.url}{hostile.LLAVA}", json=request) as reply:

            async def frames() -> AsyncIterator[dict[str, Any]]:
                async for frame in read_frames(reply.aiter_raw()):
                    yield json.loads(frame)

            yield frames()

    async def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Reads an answer to its last frame."""
        last: dict[str, Any] = {}
        async with self.stream(request) as frames:
            async for frame in frames:
                last = frame
        return last

    async def ask_text(self) -> str:
        """Asks a good question of the OpenAI protocol, without an image."""
        messages = [{"role": "user", "content": "What can you see?"}]
        request = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 16}
        reply = await self.http.post(f"{self.workers[1].url}{hostile.OPENAI}", json=request)
        return reply.json()["choices"][0]["message"]["content"] if reply.status_code == 200 else ""

    async def is_right_text(self) -> bool:
        """Checks whether a question without an image gets the same answer as at first."""
        return await self.ask_text() == self.text_answer

    async def is_right(self) -> bool:
        """Checks whether a question about an image gets the same answer as at first."""
        last = await self.ask(self.request())
        return last.get("error_code") == 0 and last["text"] == self.prompt + self.answer

    async def until(self, what: Callable[[], Awaitable[bool]]) -> bool:
        """Waits until a condition holds; False if it does not in time."""
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            with suppress(httpx.TransportError, ValueError, KeyError):  # not up yet
                if await what():
                    return True
            await asyncio.sleep(0.1)
        return False

    async def registered(self, count: int) -> bool:
        """Checks whether the controller knows `count` workers; all serve at speed 1."""
        status = await self.http.post(f"{self.controller.url}/worker_get_status")
        return status.json()["speed"] == count

    async def idle(self) -> bool:
        """Checks whether no worker has a request."""
        statuses = [await self.http.post(f"{worker.url}/worker_get_status") for worker in self.workers]
        return all(status.json()["queue_length"] == 0 for status in statuses)

    async def busy(self) -> Program | None:
        """Finds the worker that is answering."""
        for worker in self.workers:
            status = await self.http.post(f"{worker.url}/worker_get_status")
            if status.json()["queue_length"] > 0:
                return worker
        return None
