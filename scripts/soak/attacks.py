"""Attacks on the servers, a function for each: it returns what was wrong with the reply, or None.

Every attack is bounded in size and number, and targets servers of this machine only.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import httpx

from scripts.soak import hostile
from scripts.soak.target import Complaint, Target, is_answer, unless


async def send_malformed(target: Target) -> Complaint:
    """Sends a request with one field wrong, which must be refused with 4xx."""
    number = next(target.numbers)
    bad = hostile.malformed(number, target.model, target.picture)
    # OpenAI's routes are the workers' own; both kinds of server see bad requests in LLaVA's protocol.
    server = target.controller if bad.path == hostile.LLAVA and number % 4 == 0 else target.worker()
    reply = await target.client.post(
        f"{server}{bad.path}", content=bad.body, headers={"Content-Type": "application/json"}
    )
    return unless(400 <= reply.status_code < 500, f"{bad.path} {bad.what}", reply)


async def send_image(target: Target) -> Complaint:
    """Sends a hostile or odd image, which must be refused with 4xx or answered, as `PICTURES` says, in time."""
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
    """Sends an image that decodes too slowly, and waits for the refusal."""
    start = time.monotonic()
    reply = await target.client.post(
        f"{target.worker()}{hostile.OPENAI}", json=target.about(hostile.OPENAI, target.image("slow"))
    )
    seconds = time.monotonic() - start
    fine = (400 <= reply.status_code < 500 or is_answer(reply)) and seconds < target.slowest
    return None if fine else f"a slow image: {reply.status_code} after {seconds:.1f} s"


async def leave_slow_images(target: Target, count: int = 4) -> Complaint:
    """Sends such images at once, from clients that hang up after two seconds."""

    async def leave() -> None:
        with suppress(httpx.TimeoutException):
            await target.client.post(
                f"{target.controller}{hostile.LLAVA}", json=target.about(hostile.LLAVA, target.image("slow")), timeout=2
            )

    await asyncio.gather(*(leave() for _ in range(count)))
    return None


async def hang_up(target: Target) -> Complaint:
    """Closes the connection in the middle of an answer."""
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
    """Sends a request with extreme settings within the allowed range, which must be answered."""
    fields = EXTREMES[next(target.numbers) % len(EXTREMES)]
    reply = await target.client.post(f"{target.worker()}{hostile.OPENAI}", json=target.chat(**fields))
    return unless(is_answer(reply) or reply.status_code == 429, f"{fields}", reply)


async def send_other_fields(target: Target) -> Complaint:
    """Sends requests as other clients write them: harmless fields must be accepted, others refused by name."""
    picture = base64.encodebytes(base64.b64decode(target.picture)).decode()
    url = {"url": f"data:image/png;base64,{picture}", "detail": "original"}
    wrapped = [
        {"role": "user", "content": [{"type": "image_url", "image_url": url}, {"type": "text", "text": "What?"}]}
    ]
    turns = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello", "refusal": ""},
        {"role": "user", "content": [{"type": "text", "text": "And?", "cache_control": {"type": "ephemeral"}}]},
    ]
    outside = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/a.png"}}]}]
    cases: list[tuple[dict[str, Any], int]] = [
        (target.chat(messages=wrapped), 200),
        (target.chat(messages=turns), 200),
        (target.chat(messages=outside), 400),
        (target.chat(response_format={"type": "json_object"}), 400),
        (target.chat(messages=[{"role": "user", "content": None}]), 400),
    ]
    request, status = cases[next(target.numbers) % len(cases)]
    reply = await target.client.post(f"{target.worker()}{hostile.OPENAI}", json=request)
    return unless(reply.status_code in (status, 429), f"{json.dumps(request)[-80:]}", reply)


async def hold_headers(target: Target, connections: int = 300, seconds: float = 5.0) -> Complaint:
    """Opens connections whose headers never end, while /health must still answer."""
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
    """Sends bodies that are each within the limit and together beyond it."""

    async def body() -> Any:
        for _ in range(size // 2**20):
            yield b" " * 2**20

    async def send() -> int:
        try:
            reply = await target.client.post(
                f"{target.worker()}{hostile.OPENAI}", content=body(), headers={"Content-Type": "application/json"}
            )
        except (httpx.TransportError, httpx.TimeoutException):
            return 0  # refused, and the connection closed, while the body was being sent
        return reply.status_code

    statuses = await asyncio.gather(*(send() for _ in range(count)))
    wrong = [status for status in statuses if status and not (400 <= status < 500 or status == 503)]
    return f"{count} bodies of {size >> 20} MiB: {wrong}" if wrong else None


async def post_from_another_page(target: Target) -> Complaint:
    """Posts as a browser does, without a preflight request, for a page of another origin."""
    request = json.dumps(target.about(hostile.LLAVA, base64.b64decode(target.picture)))
    headers = {"Content-Type": "text/plain", "Origin": "http://elsewhere.example"}
    server = target.worker() if next(target.numbers) % 2 else target.controller
    reply = await target.client.post(f"{server}{hostile.LLAVA}", content=request, headers=headers)
    return unless(reply.status_code == 403, "a page of another origin", reply)


async def send_false_heartbeats(target: Target) -> Complaint:
    """Sends absurd heartbeats and registrations, one with the controller's own address."""
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
    "abandoned slow images": (leave_slow_images, 8.0),
    "clients that hang up": (hang_up, 1.0),
    "extreme settings": (send_extreme, 1.0),
    "other clients' fields": (send_other_fields, 1.0),
    "300 half-sent headers": (hold_headers, 5.0),
    "20 bodies of 60 MiB": (send_large_bodies, 20.0),
    "pages of other origins": (post_from_another_page, 1.0),
    "false heartbeats": (send_false_heartbeats, 0.7),
}
"""Name -> the attack, and the seconds from one to the next."""
