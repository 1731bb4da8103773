"""Faults and attacks, seen to be survived: `python -m scripts.soak`. Bounded in number and time, on this machine only.

Runs a controller and two workers with the embedded model as programs, and lets happen to them what happens to servers:
minutes of `attacks` among good requests, a queue that overflows, a worker killed in mid-stream, one that is stopped,
the controller started again. Prints what was promised and what was seen; exits with 1 where they differ.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import time
from asyncio.subprocess import PIPE
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import httpx

from llava.command import OneLineParser, real, run_command
from llava.conversation import conv_templates
from llava.images import load_image
from llava.serve.workers.protocol import FrameSplitter
from llava.utils import demo_picture_path
from scripts import attacks, hostile
from scripts.soak_programs import DEADLINE, Program, Report

MODEL = "llava-demo"
QUESTION = "What is in the picture?"
BATCH, WAITING = 4, 12  # of each worker: small, so that a queue overflows soon
LEAK = 150 * 2**20  # bytes; what the attack sends is gigabytes
MOST_EXTRA = 2**30  # bytes of each server: the bodies that it may hold, parsed, and its decoders with an image each


@dataclass(frozen=True)
class Scale:
    """How much is thrown at the servers."""

    seconds: float = 300.0
    """Length of the attack."""
    quiet: float = 30.0
    """Seconds in which the good requests are timed beforehand."""
    burst: int = 80
    """Requests at once, to fill the queues."""
    large_bodies: int = 20
    """Of 60 MiB each, at once."""
    measured: bool = True
    """Whether latency and memory are promises; in a short run, on a busy machine, they are only shown."""


QUICK = Scale(seconds=6.0, quiet=1.0, burst=50, large_bodies=6, measured=False)
PAUSE = 0.4  # seconds between good requests
SLOWER = 3.0  # times its quiet latency that a good request may take under attack


class Soak:
    """A controller, two workers, and a client."""

    def __init__(
        self, client: httpx.AsyncClient, controller: Program, workers: Sequence[Program], scale: Scale
    ) -> None:
        self.client, self.controller, self.workers, self.scale = client, controller, workers, scale
        self.report = Report(scale.measured)
        self.picture = hostile.encoded(demo_picture_path().read_bytes())
        conversation = conv_templates["vicuna_v1"].copy()
        conversation.append_message(conversation.roles[0], f"<image>\n{QUESTION}")
        conversation.append_message(conversation.roles[1], None)
        self.prompt = conversation.get_prompt()
        self.answer = self.text_answer = ""

    # Requests

    def request(self, **fields: Any) -> dict[str, Any]:
        """A good request in LLaVA's protocol."""
        return {**hostile.good(hostile.LLAVA, MODEL, self.picture, QUESTION, self.prompt), **fields}

    def babble(self) -> dict[str, Any]:
        """A request whose answer takes a while: so hot that hardly ever the end token is drawn."""
        return self.request(temperature=50.0, max_new_tokens=512, seed=1)

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

    async def ask_text(self) -> str:
        """The answer to a good request of the OpenAI protocol, without an image."""
        messages = [{"role": "user", "content": "What can you see?"}]
        request = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 16}
        reply = await self.client.post(f"{self.workers[1].url}{hostile.OPENAI}", json=request)
        return reply.json()["choices"][0]["message"]["content"] if reply.status_code == 200 else ""

    async def is_right_text(self) -> bool:
        """Whether it is the answer that it was at first."""
        return await self.ask_text() == self.text_answer

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
        self.text_answer = await self.ask_text()
        self.report.check(bool(self.text_answer), "one without an image too", self.text_answer)

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

    async def the_servers_are_attacked(self) -> None:
        """All attacks side by side, each again and again, while good requests go on at a steady pace."""
        quiet = await self.time_good_requests(self.scale.quiet)
        await self.attack(self.scale.quiet)  # so that pools and caches are filled before anything is measured
        await self.until(self.idle)
        before, files = self.memories(), self.descriptors()
        peaks = list(before)
        attacking = asyncio.create_task(self.attack(self.scale.seconds))
        watching = asyncio.create_task(self.watch_memory(peaks))
        timed = await self.time_good_requests(self.scale.seconds, until=attacking)
        came = await attacking
        watching.cancel()
        wrong = came["wrong"]
        told = ", ".join(f"{count} x {name}" for name, count in sorted(came["counts"].items()))
        self.report.check(not wrong, f"{self.scale.seconds:g} s of attacks come to what they should", told)
        for complaint in wrong[:20]:
            print(f"      {complaint}")
        for name, times in timed.items():
            right = [seconds for seconds in times if seconds is not None]
            self.report.check(len(right) == len(times), f"good {name} are answered right", f"{len(right)}")
            usual = sorted(seconds for seconds in quiet[name] if seconds is not None)
            allowed = SLOWER * usual[-1]
            told = f"quiet {spread(usual)}; attacked {spread(right)}"
            self.report.measure(
                max(right) <= allowed,
                f"good {name} within {SLOWER:g} x their quiet latency",
                told,
            )
        grown = [peak - size for peak, size in zip(peaks, before, strict=True)]
        self.report.measure(max(grown) < MOST_EXTRA, "extra memory at its peak", in_mib(grown))
        self.report.check(await self.until(self.idle), "the queues are empty behind the attack")
        left = [now - size for now, size in zip(self.memories(), before, strict=True)]
        self.report.measure(max(left) < LEAK, "memory is where it was", in_mib(left))
        closed = await self.until(self.closes_files(files))
        self.report.check(closed, "open files are as many as before", f"{files} and {self.descriptors()}")

    def programs(self) -> list[Program]:
        """The controller and the workers."""
        return [self.controller, *self.workers]

    def memories(self) -> list[int]:
        """Resident bytes of each program."""
        return [program.memory() for program in self.programs()]

    def descriptors(self) -> list[int]:
        """Open files and sockets of each program."""
        return [program.descriptors() for program in self.programs()]

    def closes_files(self, before: Sequence[int]) -> Callable[[], Awaitable[bool]]:
        """Makes the check that no program has more open files than before, but for a connection or two."""

        async def check() -> bool:
            return all(now <= then + 4 for now, then in zip(self.descriptors(), before, strict=True))

        return check

    async def watch_memory(self, peaks: list[int]) -> None:
        """Keeps the largest memory of each program."""
        while True:
            peaks[:] = map(max, peaks, self.memories())
            await asyncio.sleep(0.2)

    async def attack(self, seconds: float) -> dict[str, Any]:
        """Runs `scripts.attacks` in a process of its own; returns how often each came, and what was wrong."""
        patience = {} if self.scale.measured else {"slowest": DEADLINE, "healthy": DEADLINE}
        options = {
            "controller": self.controller.url,
            "workers": [worker.url for worker in self.workers],
            "model": MODEL,
            "picture": self.picture,
            "prompt": self.prompt,
            "seconds": seconds,
            "large_bodies": self.scale.large_bodies,
            **patience,
        }
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", "scripts.attacks", stdin=PIPE, stdout=PIPE)
        out, _ = await process.communicate(json.dumps(options).encode())
        return json.loads(out)

    async def time_good_requests(
        self, seconds: float, until: asyncio.Task[Any] | None = None
    ) -> dict[str, list[float | None]]:
        """Seconds that good requests take, one after the other; None for one that was not answered right."""
        kinds = {"questions about an image": self.is_right, "questions in text": self.is_right_text}
        times: dict[str, list[float | None]] = {name: [] for name in kinds}
        end = time.monotonic() + seconds
        while time.monotonic() < end or (until is not None and not until.done()):
            for name, ask in kinds.items():
                start = time.monotonic()
                right = await ask()
                times[name].append(time.monotonic() - start if right else None)
                await asyncio.sleep(PAUSE)
        return times

    async def a_worker_is_stopped(self) -> None:
        """SIGSTOP, so that it takes connections and never answers."""
        stopped = self.workers[0]
        stopped.process.send_signal(signal.SIGSTOP)
        try:
            slowest = 0.0
            right = []
            for _ in range(4):
                start = time.monotonic()
                right.append(await self.is_right())
                slowest = max(slowest, time.monotonic() - start)
        finally:
            stopped.process.send_signal(signal.SIGCONT)
        told = f"{sum(right)} of 4 right, the slowest after {slowest:.1f} s"
        self.report.check(all(right), "a stopped worker is passed over", told)
        self.report.measure(slowest < 10, "within 10 s")
        self.report.check(await self.until(lambda: self.registered(2)), "it is used again when it goes on")

    async def the_queue_overflows(self) -> None:
        """More requests at once than the workers take on."""

        async def one(number: int) -> int:
            request = {**self.babble(), "max_new_tokens": 128}
            reply = await self.client.post(f"{self.controller.url}{hostile.LLAVA}", json=request)
            if reply.status_code == 429 and not reply.headers.get("Retry-After", "").isdigit():
                return 0
            return reply.status_code if reply.status_code != 200 or attacks.is_answer(reply) else 0

        statuses = Counter(await asyncio.gather(*map(one, range(self.scale.burst))))
        told = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
        fine = set(statuses) == {200, 429}
        self.report.check(fine, f"{self.scale.burst} requests at once: answered, or refused with Retry-After", told)
        self.report.check(await self.until(self.idle), "the queues are empty again")
        self.report.check(await self.is_right(), "the next request is answered right")


def spread(times: Sequence[float]) -> str:
    """Median, 95th percentile and maximum of some seconds."""
    ordered = sorted(times)
    p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return f"{statistics.median(ordered):.2f} / {p95:.2f} / {ordered[-1]:.2f} s of {len(ordered)}"


def in_mib(sizes: Sequence[int]) -> str:
    """Bytes of each program, as text."""
    return ", ".join(f"{size / 2**20:+.0f} MiB" for size in sizes)


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
        await run.the_servers_are_attacked()
        await run.the_queue_overflows()
        await run.a_worker_is_stopped()
        await run.a_worker_is_killed()
        await run.the_controller_restarts()
        return run.report.failures


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = OneLineParser(prog="soak", description="Let faults happen to a controller and its workers.")
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--seconds", type=real(1), help=f"length of the attack (default: {Scale.seconds:g})")
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: run(args))


def run(args: argparse.Namespace) -> int:
    """Lets the faults happen; returns 1 if a promise was broken."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # several programs share the cores
    scale = QUICK if args.quick else Scale()
    if args.seconds:
        scale = replace(scale, seconds=args.seconds)
    start = time.monotonic()
    failures = asyncio.run(soak(scale))
    print(f"{len(failures)} promises broken, {time.monotonic() - start:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
