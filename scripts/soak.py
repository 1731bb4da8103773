"""Faults, seen to be survived: `python -m scripts.soak`. Bounded in number and time, on the loopback interface only.

Runs a controller and two workers with the embedded model as programs, and lets happen to them what happens to servers:
a worker killed in mid-stream, the controller started again, clients that vanish, malformed requests and hostile
pictures among good ones, a queue that overflows. Prints what was promised and what was seen; exits with 1 where they
differ.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil

from llava.command import OneLineParser, run_command
from llava.conversation import conv_templates
from llava.serve.images import load_image
from llava.serve.wire import FrameSplitter
from llava.utils import demo_picture_path
from scripts import hostile

MODEL = "llava-demo"
DEADLINE = 120.0  # seconds for anything to become true
QUESTION = "What is in the picture?"
BATCH, WAITING = 4, 12  # of each worker: small, so that a queue overflows soon
LEAK = 60 * 2**20  # bytes; a hundred requests that were kept would hold some hundreds of MiB


@dataclass
class Report:
    """What was promised and seen."""

    failures: list[str] = field(default_factory=list)

    def check(self, holds: bool, promise: str, seen: object = "") -> None:
        """Prints one line, and remembers a broken promise."""
        print(f"{'ok  ' if holds else 'FAIL'}  {promise}{f' ({seen})' if seen != '' else ''}", flush=True)
        if not holds:
            self.failures.append(promise)


@dataclass(frozen=True)
class Scale:
    """How much is thrown at the servers."""

    vanishing: int = 100
    malformed: int = 200
    pictures: int = 40
    good: int = 60
    burst: int = 80


QUICK = Scale(vanishing=10, malformed=40, pictures=20, good=10, burst=50)


class Program:
    """A server in a process of its own, which can be killed and started again at the same address."""

    def __init__(self, module: str, *flags: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        self.url = f"http://localhost:{port}"
        self.command = [sys.executable, "-m", module, "--port", str(port), *flags]
        self.start()

    def start(self) -> None:
        """Starts it; `answers` says when it is up."""
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Ends it and waits."""
        self.process.send_signal(how)
        self.process.wait(DEADLINE)

    def memory(self) -> int:
        """Its resident bytes."""
        return psutil.Process(self.process.pid).memory_info().rss


class Soak:
    """A controller, two workers, and a client."""

    def __init__(
        self, client: httpx.AsyncClient, controller: Program, workers: Sequence[Program], scale: Scale
    ) -> None:
        self.client, self.controller, self.workers, self.scale = client, controller, workers, scale
        self.report = Report()
        self.picture = hostile.encoded(demo_picture_path().read_bytes())
        conversation = conv_templates["vicuna_v1"].copy()
        conversation.append_message(conversation.roles[0], f"<image>\n{QUESTION}")
        conversation.append_message(conversation.roles[1], None)
        self.prompt = conversation.get_prompt()
        self.answer = ""

    # Requests

    def request(self, **fields: Any) -> dict[str, Any]:
        """A good request in LLaVA's protocol."""
        return {**hostile.good(hostile.LLAVA, MODEL, self.picture, QUESTION, self.prompt), **fields}

    def babble(self) -> dict[str, Any]:
        """A request whose answer takes a while: so hot that hardly ever the end token is drawn."""
        return self.request(temperature=50.0, max_new_tokens=1024, seed=1)

    @asynccontextmanager
    async def stream(self, request: dict[str, Any]) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """An answer's frames, by way of the controller; leaving early hangs up."""
        async with self.client.stream("POST", f"{self.controller.url}{hostile.LLAVA}", json=request) as reply:

            async def frames() -> AsyncIterator[dict[str, Any]]:
                splitter = FrameSplitter()
                async for data in reply.aiter_raw():
                    for frame in splitter.push(data):
                        yield json.loads(frame)

            yield frames()

    async def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The last frame of an answer."""
        last: dict[str, Any] = {}
        async with self.stream(request) as frames:
            async for frame in frames:
                last = frame
        return last

    async def is_right(self) -> bool:
        """Whether a good request gets the answer that it got at first."""
        said = await self.ask(self.request())
        return said.get("error_code") == 0 and said["text"] == self.prompt + self.answer

    # What is waited for

    async def until(self, what: Callable[[], Awaitable[bool]]) -> bool:
        """Waits until something is true; False if it does not become so in time."""
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            with suppress(httpx.TransportError, ValueError, KeyError):  # not up yet
                if await what():
                    return True
            await asyncio.sleep(0.1)
        return False

    async def registered(self, count: int) -> bool:
        """Whether so many workers are known to the controller; all serve at speed 1."""
        status = await self.client.post(f"{self.controller.url}/worker_get_status")
        return status.json()["speed"] == count

    async def idle(self) -> bool:
        """Whether no worker has anything to do."""
        statuses = [await self.client.post(f"{worker.url}/worker_get_status") for worker in self.workers]
        return all(status.json()["queue_length"] == 0 for status in statuses)

    # What happens

    async def begin(self) -> None:
        """Everything comes up, and the right answer is known."""
        self.report.check(await self.until(lambda: self.registered(2)), "both workers register")
        said = await self.ask(self.request())
        self.answer = said.get("text", "").removeprefix(self.prompt)
        self.report.check(bool(self.answer.strip()), "a question is answered", self.answer.strip())

    async def a_worker_is_killed(self) -> None:
        """SIGKILL in mid-stream."""
        last: dict[str, Any] = {}
        async with self.stream(self.babble()) as frames:
            async for frame in frames:
                last = frame
                if (busy := await self.busy()) is not None:
                    busy.stop(signal.SIGKILL)
                    break
            async for frame in frames:
                last = frame
        told = f"error_code {last.get('error_code')}: {str(last.get('text'))[:60]}"
        self.report.check(last.get("error_code") in (1, 3), "a worker killed in mid-stream: its client is told", told)
        right = [await self.is_right() for _ in range(4)]
        self.report.check(all(right), "the next requests go to the other worker", f"{sum(right)} of 4 right")
        for worker in self.workers:
            if worker.process.poll() is not None:
                worker.start()
        self.report.check(await self.until(lambda: self.registered(2)), "the worker comes back and is used again")

    async def busy(self) -> Program | None:
        """The worker that is answering."""
        for worker in self.workers:
            status = await self.client.post(f"{worker.url}/worker_get_status")
            if status.json()["queue_length"] > 0:
                return worker
        return None

    async def the_controller_restarts(self) -> None:
        """SIGTERM, and a new one at the same address."""
        self.controller.stop()
        self.controller.start()
        self.report.check(await self.until(self.is_right), "the controller restarts: requests are answered again")
        self.report.check(await self.until(lambda: self.registered(2)), "both workers are known to it again")

    async def clients_vanish(self) -> None:
        """Hanging up after the first frame, ten clients at a time."""

        async def vanish() -> None:
            async with self.stream(self.babble()) as frames:
                await anext(frames)

        async def many(count: int) -> None:
            for start in range(0, count, 10):
                results = await asyncio.gather(
                    *(vanish() for _ in range(start, min(start + 10, count))), return_exceptions=True
                )
                if errors := [result for result in results if isinstance(result, Exception)]:
                    raise errors[0]
                await self.until(self.idle)

        await many(2 * self.scale.vanishing)  # until then the allocator's pools fill up
        before = [worker.memory() for worker in self.workers]
        await many(self.scale.vanishing)
        self.report.check(await self.until(self.idle), f"{self.scale.vanishing} clients vanish: the queues are empty")
        grown = [worker.memory() - size for worker, size in zip(self.workers, before, strict=True)]
        told = ", ".join(f"{size / 2**20:+.0f} MiB" for size in grown)
        self.report.check(max(grown) < LEAK, "memory is where it was", told)

    async def bad_comes_with_good(self) -> None:
        """Malformed requests and hostile pictures, in random order among good requests, eight at a time."""
        kinds = Counter[str]()
        wrong: list[str] = []
        gate = asyncio.Semaphore(8)

        async def send(work: Callable[[], Awaitable[tuple[str, str | None]]]) -> None:
            async with gate:
                kind, complaint = await work()
            kinds[kind] += 1
            if complaint:
                wrong.append(complaint)

        names = list(hostile.PICTURES)
        work: list[Callable[[], Awaitable[tuple[str, str | None]]]] = []
        work += [lambda i=i: self.send_malformed(i) for i in range(self.scale.malformed)]
        work += [lambda i=i: self.send_picture(names[i % len(names)], i) for i in range(self.scale.pictures)]
        work += [self.send_good for _ in range(self.scale.good)]
        random.Random(0).shuffle(work)
        await asyncio.gather(*map(send, work))
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        self.report.check(not wrong, "bad requests are refused with 4xx, every good one is answered right", told)
        for complaint in wrong[:10]:
            print(f"      {complaint}")

    async def send_malformed(self, number: int) -> tuple[str, str | None]:
        """One malformed request; the complaint is None if it was refused as it should be."""
        bad = hostile.malformed(number, MODEL, self.picture)
        # OpenAI's routes are the workers' own; both kinds of server see bad requests in LLaVA's protocol.
        server = self.controller if bad.path == hostile.LLAVA and number % 4 == 0 else self.workers[number % 2]
        reply = await self.client.post(
            f"{server.url}{bad.path}", content=bad.body, headers={"Content-Type": "application/json"}
        )
        refused = 400 <= reply.status_code < 500
        return "refused", None if refused else f"{bad.path} {bad.what}: {reply.status_code} {reply.text[:100]}"

    async def send_picture(self, name: str, number: int) -> tuple[str, str | None]:
        """One hostile or odd picture."""
        make, answered = hostile.PICTURES[name]
        path = (hostile.LLAVA, hostile.OPENAI)[number // len(hostile.PICTURES) % 2]
        request = hostile.good(path, MODEL, hostile.encoded(make()), QUESTION, self.prompt)
        server = self.controller if path == hostile.LLAVA else self.workers[number % 2]
        reply = await self.client.post(f"{server.url}{path}", json=request)
        as_it_should = is_answer(reply) if answered else 400 <= reply.status_code < 500
        kind = "odd pictures answered" if answered else "hostile pictures refused"
        return kind, None if as_it_should else f"picture {name}: {reply.status_code} {reply.text[-100:]}"

    async def send_good(self) -> tuple[str, str | None]:
        """One good request."""
        return "good", None if await self.is_right() else "a good request was not answered right"

    async def the_queue_overflows(self) -> None:
        """More requests at once than the workers take on."""

        async def one(number: int) -> int:
            reply = await self.client.post(f"{self.controller.url}{hostile.LLAVA}", json=self.babble())
            if reply.status_code == 429 and not reply.headers.get("Retry-After", "").isdigit():
                return 0
            return reply.status_code if reply.status_code != 200 or is_answer(reply) else 0

        statuses = Counter(await asyncio.gather(*map(one, range(self.scale.burst))))
        told = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
        fine = set(statuses) == {200, 429}
        self.report.check(fine, f"{self.scale.burst} requests at once: answered, or refused with Retry-After", told)
        self.report.check(await self.until(self.idle), "the queues are empty again")
        self.report.check(await self.is_right(), "the next request is answered right")


def is_answer(reply: httpx.Response) -> bool:
    """Whether a reply is an answer that came to its end, in either protocol; its status alone does not tell."""
    if reply.status_code != 200:
        return False
    last = json.loads(reply.content.rstrip(b"\0").rpartition(b"\0")[2])
    return bool(last.get("finish_reason") or last.get("choices", [{}])[0].get("finish_reason"))


@asynccontextmanager
async def servers(scale: Scale) -> AsyncIterator[Soak]:
    """A controller and two workers, ended behind the run."""
    async with AsyncExitStack() as stack:
        controller = Program("llava.serve.controller")
        bounds = ("--limit-model-concurrency", str(BATCH), "--max-waiting", str(WAITING))
        link = ("--controller-address", controller.url, "--model-name", MODEL)
        workers = [Program("llava.serve.model_worker", *bounds, *link) for _ in range(2)]
        for program in (controller, *workers):
            stack.callback(lambda program=program: program.process.poll() is None and program.stop(signal.SIGKILL))
        client = await stack.enter_async_context(
            httpx.AsyncClient(timeout=DEADLINE, trust_env=False, limits=httpx.Limits(max_connections=None))
        )
        yield Soak(client, controller, workers, scale)


async def soak(scale: Scale) -> list[str]:
    """Runs everything; returns the promises that were broken."""
    load_image(demo_picture_path())  # fails here if the demo is not installed
    async with servers(scale) as run:
        await run.begin()
        await run.clients_vanish()
        await run.bad_comes_with_good()
        await run.the_queue_overflows()
        await run.a_worker_is_killed()
        await run.the_controller_restarts()
        return run.report.failures


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = OneLineParser(prog="soak", description="Let faults happen to a controller and its workers.")
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: run(args))


def run(args: argparse.Namespace) -> int:
    """Lets the faults happen; returns 1 if a promise was broken."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # several programs share the cores
    scale = QUICK if args.quick else Scale()
    start = time.monotonic()
    failures = asyncio.run(soak(scale))
    print(f"{len(failures)} promises broken, {time.monotonic() - start:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
