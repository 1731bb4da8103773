"""Faults of a controller and two workers with the embedded model, and what must hold while they happen.

Minutes of attacks among good requests, a queue that overflows, a worker killed while it answers, a worker stopped, the
controller restarted. Bounded in number and time, on this machine only.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from asyncio.subprocess import PIPE
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx

from llava.images import load_image
from llava.utils import demo_picture_path
from scripts.soak import hostile
from scripts.soak.client import MODEL, Client
from scripts.soak.programs import DEADLINE, Program
from scripts.soak.report import Report, in_mib, spread
from scripts.soak.scale import Scale
from scripts.soak.target import is_answer

BATCH, WAITING = 4, 12  # of each worker: small, so that a queue overflows early
LEAK = 150 * 2**20  # bytes; the attack sends gigabytes
MAX_EXTRA = 2**30  # bytes of each server: the bodies that it may hold, parsed, and an image in each decoder


PAUSE = 0.4  # seconds between good requests
SLOWER = 3.0  # limit of a good request's latency under attack, as a multiple of its quiet latency


class Soak(Client):
    """Lets faults happen to a controller and two workers, and reports what they kept."""

    def __init__(self, http: httpx.AsyncClient, controller: Program, workers: Sequence[Program], scale: Scale) -> None:
        super().__init__(http, controller, workers)
        self.scale, self.report = scale, Report(scale.measured)

    async def learn_answers(self) -> None:
        """Waits for the workers and asks for the right answers."""
        registered = await self.until(lambda: self.registered(2))
        self.report.check(registered, "both workers register")
        if not registered:
            words = [f"{' '.join(program.command[2:4])}: {program.last_words()}" for program in self.programs()]
            raise RuntimeError("the servers did not start\n" + "\n".join(words))
        last = await self.ask(self.request())
        self.answer = last.get("text", "").removeprefix(self.prompt)
        self.report.check(bool(self.answer.strip()), "a question is answered", self.answer.strip())
        self.text_answer = await self.ask_text()
        self.report.check(bool(self.text_answer), "one without an image too", self.text_answer)

    async def kill_worker(self) -> None:
        """Kills a worker while it answers."""
        last: dict[str, Any] = {}
        async with self.stream(self.long_request()) as frames:
            async for frame in frames:
                last = frame
                if (busy := await self.busy()) is not None:
                    busy.stop(signal.SIGKILL)
                    break
            async for frame in frames:
                last = frame
        detail = f"error_code {last.get('error_code')}: {str(last.get('text'))[:60]}"
        self.report.check(
            last.get("error_code") in (1, 3), "a worker killed while it answers: its client gets an error", detail
        )
        right = [await self.is_right() for _ in range(4)]
        self.report.check(all(right), "the next requests go to the other worker", f"{sum(right)} of 4 right")
        for worker in self.workers:
            if worker.process.poll() is not None:
                worker.start()
        self.report.check(await self.until(lambda: self.registered(2)), "the worker comes back and is used again")

    async def restart_controller(self) -> None:
        """Ends the controller and starts a new one at the same address."""
        self.controller.stop()
        self.controller.start()
        self.report.check(await self.until(self.is_right), "the controller restarts: requests are answered again")
        self.report.check(await self.until(lambda: self.registered(2)), "both workers are known to it again")

    async def attack_servers(self) -> None:
        """Attacks the servers while good requests keep coming at a steady pace."""
        quiet = await self.time_good_requests(self.scale.quiet)
        if self.scale.measured:  # fill pools and caches before memory is measured
            await self.attack(self.scale.quiet)
            await self.until(self.idle)
        before, files = self.memories(), self.descriptors()
        peaks = list(before)
        attacking = asyncio.create_task(self.attack(self.scale.seconds))
        watching = asyncio.create_task(self.watch_memory(peaks))
        timed = await self.time_good_requests(self.scale.seconds, until=attacking)
        found = await attacking
        watching.cancel()
        wrong = found["wrong"]
        detail = ", ".join(f"{count} x {name}" for name, count in sorted(found["counts"].items()))
        self.report.check(not wrong, f"{self.scale.seconds:g} s of attacks: every reply is as it should be", detail)
        for complaint in wrong[:20]:
            print(f"      {complaint}")
        for name, times in timed.items():
            right = [seconds for seconds in times if seconds is not None]
            self.report.check(len(right) == len(times), f"good {name} are answered correctly", f"{len(right)}")
            usual = sorted(seconds for seconds in quiet[name] if seconds is not None)
            allowed = SLOWER * usual[-1]
            detail = f"quiet {spread(usual)}; attacked {spread(right)}"
            self.report.measure(
                max(right) <= allowed,
                f"good {name} within {SLOWER:g} x their quiet latency",
                detail,
            )
        grown = [peak - size for peak, size in zip(peaks, before, strict=True)]
        self.report.measure(max(grown) < MAX_EXTRA, "extra memory at its peak", in_mib(grown))
        self.report.check(await self.until(self.idle), "the queues are empty after the attack")
        left = [now - size for now, size in zip(self.memories(), before, strict=True)]
        self.report.measure(max(left) < LEAK, "memory is where it was", in_mib(left))
        closed = await self.until(self.has_closed_files(files))
        self.report.check(closed, "open files are as many as before", f"{files} and {self.descriptors()}")

    def programs(self) -> list[Program]:
        """Lists the controller and the workers."""
        return [self.controller, *self.workers]

    def memories(self) -> list[int]:
        """Measures the resident bytes of each program."""
        return [program.memory() for program in self.programs()]

    def descriptors(self) -> list[int]:
        """Counts the open files and sockets of each program."""
        return [program.descriptors() for program in self.programs()]

    def has_closed_files(self, before: Sequence[int]) -> Callable[[], Awaitable[bool]]:
        """Makes the check that no program has more open files than before, apart from a few connections."""

        async def check() -> bool:
            return all(now <= then + 4 for now, then in zip(self.descriptors(), before, strict=True))

        return check

    async def watch_memory(self, peaks: list[int]) -> None:
        """Records the largest memory of each program."""
        while True:
            peaks[:] = map(max, peaks, self.memories())
            await asyncio.sleep(0.2)

    async def attack(self, seconds: float) -> dict[str, Any]:
        """Runs `attacker` in a separate process; returns how often each attack ran, and what was wrong."""
        patience = {} if self.scale.measured else {"slowest": DEADLINE, "healthy": DEADLINE}
        options = {
            "controller": self.controller.url,
            "workers": [worker.url for worker in self.workers],
            "model": MODEL,
            "picture": self.picture,
            "prompt": self.prompt,
            "seconds": seconds,
            "large_bodies": self.scale.large_bodies,
            "slow_images": self.scale.slow_images,
            **patience,
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "scripts.soak.attacker", stdin=PIPE, stdout=PIPE
        )
        out, _ = await process.communicate(json.dumps(options).encode())
        return json.loads(out)

    async def time_good_requests(
        self, seconds: float, until: asyncio.Task[Any] | None = None
    ) -> dict[str, list[float | None]]:
        """Times good requests, one after the other; None for a wrong answer."""
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

    async def stop_worker(self) -> None:
        """Stops a worker by SIGSTOP: it accepts connections and never answers."""
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
        detail = f"{sum(right)} of 4 right, the slowest after {slowest:.1f} s"
        self.report.check(all(right), "a stopped worker is skipped", detail)
        self.report.measure(slowest < 10, "within 10 s")
        self.report.check(await self.until(lambda: self.registered(2)), "it is used again once it continues")

    async def overflow_queue(self) -> None:
        """Sends more requests at once than the workers accept."""

        unexpected: list[str] = []

        async def one(number: int) -> int:
            request = {**self.long_request(), "max_new_tokens": self.scale.longest}
            reply = await self.http.post(f"{self.controller.url}{hostile.LLAVA}", json=request)
            if reply.status_code == 429 and not reply.headers.get("Retry-After", "").isdigit():
                return 0
            if reply.status_code not in (200, 429):
                unexpected.append(reply.text[-200:])
            return reply.status_code if reply.status_code != 200 or is_answer(reply) else 0

        statuses = Counter(await asyncio.gather(*map(one, range(self.scale.burst))))
        detail = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
        fine = set(statuses) == {200, 429}
        self.report.check(fine, f"{self.scale.burst} requests at once: answered, or refused with Retry-After", detail)
        for text in unexpected[:3]:
            print(f"      {text}")
        self.report.check(await self.until(self.idle), "the queues are empty again")
        self.report.check(await self.is_right(), "the next request is answered correctly")


@asynccontextmanager
async def servers(scale: Scale) -> AsyncIterator[Soak]:
    """Runs a controller and two workers as long as the context is open."""
    async with AsyncExitStack() as stack:
        controller = Program("llava.serve.controller")
        bounds = ("--limit-model-concurrency", str(BATCH), "--max-waiting", str(WAITING))
        link = ("--controller-address", controller.url, "--model-name", MODEL)
        workers = [Program("llava.serve.model_worker", *bounds, *link) for _ in range(2)]
        for program in (controller, *workers):
            stack.callback(lambda program=program: program.process.poll() is None and program.stop(signal.SIGKILL))
        http = await stack.enter_async_context(
            httpx.AsyncClient(timeout=DEADLINE, trust_env=False, limits=httpx.Limits(max_connections=None))
        )
        yield Soak(http, controller, workers, scale)


async def soak(scale: Scale) -> list[str]:
    """Runs everything; returns the broken promises."""
    load_image(demo_picture_path())  # fails here if the demo is not installed
    async with servers(scale) as run:
        await run.learn_answers()
        await run.attack_servers()
        await run.overflow_queue()
        await run.stop_worker()
        await run.kill_worker()
        await run.restart_controller()
        return run.report.failures
