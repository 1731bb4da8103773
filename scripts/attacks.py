"""What one hostile client does to the servers, an attack a function: each says what was wrong with the answer, or None.

Every attack is bounded in size and number, and goes to servers of this machine only. `python -m scripts.attacks` runs
them in a process of its own, so that the soak run can time good requests beside them.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import httpx

from llava.command import OneLineParser, run_command
from scripts import hostile

Complaint = str | None


@dataclass
class Target:
    """The servers that are attacked, and what a good request to them looks like."""

    client: httpx.AsyncClient
    controller: str
    workers: Sequence[str]
    model: str
    picture: str
    """Base64 text of a good image."""
    prompt: str
    """A question about it, in the model's prompt format."""
    slowest: float = 10.0
    """Seconds within which a costly image must be refused."""
    healthy: float = 2.0
    """Seconds within which a server must say that it is well."""
    numbers: itertools.count[int] = field(default_factory=itertools.count)
    made: dict[str, bytes] = field(default_factory=dict)

    def worker(self) -> str:
        """One of the workers, each in its turn."""
        return self.workers[next(self.numbers) % len(self.workers)]

    def image(self, name: str) -> bytes:
        """A hostile image; made once, since some take seconds to make."""
        if name not in self.made:
            self.made[name] = hostile.slow_jpeg() if name == "slow" else hostile.PICTURES[name][0]()
        return self.made[name]

    def chat(self, **fields: Any) -> dict[str, Any]:
        """A good request of the OpenAI protocol."""
        return {**hostile.good(hostile.OPENAI, self.model, self.picture, "What is in the picture?"), **fields}

    def about(self, path: str, image: bytes) -> dict[str, Any]:
        """A request about another image."""
        return hostile.good(path, self.model, hostile.encoded(image), "What is in the picture?", self.prompt)


async def send_malformed(target: Target) -> Complaint:
    """A request with one thing wrong, which is refused with 4xx."""
    number = next(target.numbers)
    bad = hostile.malformed(number, target.model, target.picture)
    # OpenAI's routes are the workers' own; both kinds of server see bad requests in LLaVA's protocol.
    server = target.controller if bad.path == hostile.LLAVA and number % 4 == 0 else target.worker()
    reply = await target.client.post(
        f"{server}{bad.path}", content=bad.body, headers={"Content-Type": "application/json"}
    )
    return unless(400 <= reply.status_code < 500, f"{bad.path} {bad.what}", reply)


async def send_image(target: Target) -> Complaint:
    """A hostile or odd image, which is refused with 4xx or answered, as said beside it, within ten seconds."""
    number = next(target.numbers)
    names = list(hostile.PICTURES)
    name, path = names[number % len(names)], (hostile.LLAVA, hostile.OPENAI)[number // len(names) % 2]
    server = target.controller if path == hostile.LLAVA else target.worker()
    start = time.monotonic()
    reply = await target.client.post(f"{server}{path}", json=target.about(path, target.image(name)))
    seconds = time.monotonic() - start
    answered = hostile.PICTURES[name][1]
    refused = 400 <= reply.status_code < 500
    fine = (is_answer(reply) or reply.status_code == 429) if answered else refused  # 429: others wait already
    if fine and seconds < target.slowest:
        return None
    return f"image {name}: {reply.status_code} after {seconds:.1f} s, {reply.text[-100:]}"


async def send_slow_image(target: Target) -> Complaint:
    """An image that takes longer than it may, whose client waits for the refusal."""
    start = time.monotonic()
    reply = await target.client.post(
        f"{target.worker()}{hostile.OPENAI}", json=target.about(hostile.OPENAI, target.image("slow"))
    )
    seconds = time.monotonic() - start
    fine = (400 <= reply.status_code < 500 or is_answer(reply)) and seconds < target.slowest
    return None if fine else f"a slow image: {reply.status_code} after {seconds:.1f} s"


async def leave_slow_images(target: Target) -> Complaint:
    """Four such images at once, whose clients hang up after two seconds."""

    async def leave() -> None:
        with suppress(httpx.TimeoutException):
            await target.client.post(
                f"{target.controller}{hostile.LLAVA}", json=target.about(hostile.LLAVA, target.image("slow")), timeout=2
            )

    await asyncio.gather(*(leave() for _ in range(4)))
    return None


async def hang_up(target: Target) -> Complaint:
    """A client that goes away amid its answer."""
    request = {**target.about(hostile.LLAVA, base64.b64decode(target.picture)), "temperature": 50.0, "seed": 1}
    async with target.client.stream("POST", f"{target.controller}{hostile.LLAVA}", json=request) as reply:
        async for _ in reply.aiter_raw():
            break
    return None


EXTREMES: tuple[dict[str, Any], ...] = (
    {"top_p": 1e-46, "temperature": 1},
    {"top_p": 5e-324, "temperature": 2},
    {"temperature": 5e-324},
    {"temperature": 1, "top_k": 1},
    {"temperature": 1, "top_k": 2**31 - 1, "min_p": 1.0},
    {"temperature": 1, "repetition_penalty": 1e-30},
    {"logprobs": True, "top_logprobs": 20},
    {"seed": -(2**63), "temperature": 1},
)


async def send_extreme(target: Target) -> Complaint:
    """A request whose settings are allowed and extreme, which is answered."""
    fields = EXTREMES[next(target.numbers) % len(EXTREMES)]
    reply = await target.client.post(f"{target.worker()}{hostile.OPENAI}", json=target.chat(**fields))
    return unless(is_answer(reply) or reply.status_code == 429, f"{fields}", reply)


async def send_foreign_fields(target: Target) -> Complaint:
    """Requests as other clients write them: answered where they ask for nothing odd, else refused by name."""
    picture = base64.encodebytes(base64.b64decode(target.picture)).decode()
    url = {"url": f"data:image/png;base64,{picture}", "detail": "original"}
    wrapped = [
        {"role": "user", "content": [{"type": "image_url", "image_url": url}, {"type": "text", "text": "What?"}]}
    ]
    said = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello", "refusal": ""},
        {"role": "user", "content": [{"type": "text", "text": "And?", "cache_control": {"type": "ephemeral"}}]},
    ]
    outside = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/a.png"}}]}]
    cases: list[tuple[dict[str, Any], int]] = [
        (target.chat(messages=wrapped), 200),
        (target.chat(messages=said), 200),
        (target.chat(messages=outside), 400),
        (target.chat(response_format={"type": "json_object"}), 400),
        (target.chat(messages=[{"role": "user", "content": None}]), 400),
    ]
    request, status = cases[next(target.numbers) % len(cases)]
    reply = await target.client.post(f"{target.worker()}{hostile.OPENAI}", json=request)
    return unless(reply.status_code in (status, 429), f"{json.dumps(request)[-80:]}", reply)


async def hold_headers(target: Target, connections: int = 300, seconds: float = 5.0) -> Complaint:
    """Connections whose headers never end, while the server is asked whether it is well."""
    server = urlsplit(target.worker() if next(target.numbers) % 2 else target.controller)
    writers: list[asyncio.StreamWriter] = []
    try:
        for _ in range(connections):
            with suppress(OSError):
                _, writer = await asyncio.open_connection(server.hostname, server.port)
                writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
                writers.append(writer)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            start = time.monotonic()
            reply = await target.client.get(f"{server.geturl()}/health")
            took = time.monotonic() - start
            if reply.status_code != 200 or took > target.healthy:
                return f"{connections} half-sent headers: /health {reply.status_code} after {took:.1f} s"
            await asyncio.sleep(0.5)
        return None
    finally:
        for writer in writers:
            writer.close()


async def send_large_bodies(target: Target, count: int = 20, size: int = 60 * 2**20) -> Complaint:
    """Bodies that are each within the limit and together beyond it."""

    async def body() -> Any:
        for _ in range(size // 2**20):
            yield b" " * 2**20

    async def send() -> int:
        try:
            reply = await target.client.post(
                f"{target.worker()}{hostile.OPENAI}", content=body(), headers={"Content-Type": "application/json"}
            )
        except (httpx.TransportError, httpx.TimeoutException):
            return 0  # refused, and hung up, while the body was on its way
        return reply.status_code

    statuses = await asyncio.gather(*(send() for _ in range(count)))
    wrong = [status for status in statuses if status and not (400 <= status < 500 or status == 503)]
    return f"{count} bodies of {size >> 20} MiB: {wrong}" if wrong else None


async def post_from_another_page(target: Target) -> Complaint:
    """What a browser sends, without asking, for a page of another origin."""
    request = json.dumps(target.about(hostile.LLAVA, base64.b64decode(target.picture)))
    headers = {"Content-Type": "text/plain", "Origin": "http://elsewhere.example"}
    server = target.worker() if next(target.numbers) % 2 else target.controller
    reply = await target.client.post(f"{server}{hostile.LLAVA}", content=request, headers=headers)
    return unless(reply.status_code == 403, "a page of another origin", reply)


async def lie_as_worker(target: Target) -> Complaint:
    """Absurd heartbeats and registrations, the controller's own address among them."""
    beats: list[tuple[str, dict[str, Any]]] = [
        ("receive_heart_beat", {"queue_length": 10**400}),
        ("receive_heart_beat", {"queue_length": -1}),
        ("receive_heart_beat", {"queue_length": True}),
        ("register_worker", {"worker_status": {"model_names": ["m"], "speed": 1e308, "queue_length": 0}}),
        ("register_worker", {"check_heart_beat": False, "worker_status": None}),
    ]
    route, more = beats[next(target.numbers) % len(beats)]
    name = target.controller if more.get("worker_status", 0) is None else target.workers[0]
    reply = await target.client.post(f"{target.controller}/{route}", json={"worker_name": name, **more})
    return unless(400 <= reply.status_code < 500, f"{route} {str(more):.60}", reply)


ATTACKS: dict[str, tuple[Callable[[Target], Awaitable[Complaint]], float]] = {
    "malformed requests": (send_malformed, 0.3),
    "hostile and odd images": (send_image, 0.7),
    "slow images": (send_slow_image, 8.0),
    "slow images, left": (leave_slow_images, 8.0),
    "clients that hang up": (hang_up, 1.0),
    "extreme settings": (send_extreme, 1.0),
    "other clients' fields": (send_foreign_fields, 1.0),
    "300 half-sent headers": (hold_headers, 5.0),
    "20 bodies of 60 MiB": (send_large_bodies, 20.0),
    "pages of other origins": (post_from_another_page, 1.0),
    "lies about workers": (lie_as_worker, 0.7),
}
"""Name -> what it does, and the seconds from one to the next."""


async def attack(target: Target, seconds: float, large_bodies: int) -> dict[str, Any]:
    """Runs each attack in a loop of its own; returns how often, and what was wrong."""
    end = time.monotonic() + seconds
    counts, wrong = Counter[str](), list[str]()

    async def repeat(name: str, work: Callable[[Target], Awaitable[Complaint]], pause: float) -> None:
        while time.monotonic() < end:
            try:
                complaint = await work(target)
            except httpx.TransportError as error:
                complaint = f"{name}: {type(error).__name__}"
            counts[name] += 1
            if complaint:
                wrong.append(complaint)
            await asyncio.sleep(min(pause, max(0.0, end - time.monotonic())))

    chosen = dict(ATTACKS)
    large = partial(send_large_bodies, count=large_bodies)
    chosen["large bodies"] = large, chosen.pop("20 bodies of 60 MiB")[1]
    await asyncio.gather(*(repeat(name, work, pause) for name, (work, pause) in chosen.items()))
    return {"counts": counts, "wrong": wrong}


def unless(fine: bool, what: str, reply: httpx.Response) -> Complaint:
    """None for a reply as it should be; otherwise what was asked and what came."""
    return None if fine else f"{what}: {reply.status_code} {reply.text[-120:]}"


def is_answer(reply: httpx.Response) -> bool:
    """Whether a reply is an answer that came to its end, in either protocol; its status alone does not tell."""
    if reply.status_code != 200:
        return False
    last = json.loads(reply.content.rstrip(b"\0").rpartition(b"\0")[2])
    return bool(last.get("finish_reason") or last.get("choices", [{}])[0].get("finish_reason"))


def main(argv: Sequence[str] | None = None) -> int:
    """Attacks the servers that stdin names, as JSON, and prints what came of it as JSON; returns the exit code."""
    OneLineParser(prog="attacks", description="Attack the servers of a soak run, which starts this.").parse_args(argv)

    def run() -> None:
        os.nice(10)  # on a machine of its own, a client would take no processor time from the servers
        options = json.load(sys.stdin)
        seconds, large_bodies = options.pop("seconds"), options.pop("large_bodies")

        async def work() -> dict[str, Any]:
            limits = httpx.Limits(max_connections=None)
            async with httpx.AsyncClient(timeout=120, trust_env=False, limits=limits) as client:
                return await attack(Target(client, **options), seconds, large_bodies)

        print(json.dumps(asyncio.run(work())))

    return run_command("attacks", run)


if __name__ == "__main__":
    sys.exit(main())
