"""Runs all attacks side by side."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import httpx

from scripts.soak.attacks import ATTACKS, leave_slow_images, send_large_bodies
from scripts.soak.target import Complaint, Target


async def attack(target: Target, seconds: float, large_bodies: int, slow_images: int) -> dict[str, Any]:
    """Runs all attacks side by side, each at least once; returns how often each ran, and what was wrong."""
    end = time.monotonic() + seconds
    counts, wrong = Counter[str](), list[str]()

    async def repeat(name: str, work: Callable[[Target], Awaitable[Complaint]], pause: float) -> None:
        while not counts[name] or time.monotonic() < end:
            try:
                complaint = await work(target)
            except httpx.TransportError as error:
                complaint = f"{name}: {type(error).__name__}"
            counts[name] += 1
            if complaint:
                wrong.append(complaint)
            await asyncio.sleep(min(pause, max(0.0, end - time.monotonic())))

    chosen = dict(ATTACKS)
    chosen["large bodies"] = partial(send_large_bodies, count=large_bodies), chosen.pop("20 bodies of 60 MiB")[1]
    name = "abandoned slow images"
    chosen[name] = partial(leave_slow_images, count=slow_images), chosen[name][1]
    await asyncio.gather(*(repeat(name, work, pause) for name, (work, pause) in chosen.items()))
    return {"counts": counts, "wrong": wrong}
