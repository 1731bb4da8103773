"""Requests of a simulation: drawn at random, or read from a trace."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.fleet.stages import Request


@dataclass(frozen=True)
class Mix:
    """What requests ask for; sizes and lengths are drawn with equal chances."""

    sizes: Sequence[tuple[int, int]] = ((640, 480), (1280, 960), (2048, 1536))
    """(width, height) of images in pixels."""
    budget: int | None = 576
    """QLIP's `max_tokens`: an image of more cells takes this many tokens. None takes `fixed`."""
    fixed: int = 576
    """Visual tokens without QLIP, whatever the size: 576 for CLIP at 336 pixels, 2880 for four tiles and a base."""
    patch: int = 14
    """Pixels per side of a cell."""
    text: int = 60
    """Text tokens of a prompt."""
    answers: Sequence[int] = (4, 30, 120)
    """Tokens of answers."""

    def visual_tokens(self, size: tuple[int, int]) -> int:
        """Computes the visual tokens of an image; by a quadtree at most, where it has detail everywhere."""
        if self.budget is None:
            return self.fixed
        return min(self.budget, round(size[0] / self.patch) * round(size[1] / self.patch))


def draw_requests(mix: Mix, rate: float, count: int, seed: int) -> list[Request]:
    """Draws requests that arrive independently of each other: a Poisson process.

    Args:
        mix: what they ask for.
        rate: requests per second.
        count: how many.
        seed: of the random numbers; two mixes with the same seed have the same arrivals, sizes and answers.
    """
    if not rate > 0:
        raise ValueError(f"the rate is {rate}; it must be above 0 requests per second")
    numbers, now, made = random.Random(seed), 0.0, []
    for _ in range(count):
        now += numbers.expovariate(rate)
        size, answer = numbers.choice(mix.sizes), numbers.choice(mix.answers)
        made.append(Request(now, math.prod(size) / 1e6, mix.visual_tokens(size), mix.text, answer))
    return made


def read_trace(path: Path) -> list[Request]:
    """Reads JSON lines of `at`, `megapixels`, `visual`, `text` and `answer`, sorted by arrival.

    Raises:
        ValueError: a line is not such an object, or none is there.
    """
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            request = Request(**json.loads(line))
            check_request(request)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}:{number} is not a request of a trace: {error}") from None
        found.append(request)
    if not found:
        raise ValueError(f"{path} holds no request")
    return sorted(found, key=lambda request: request.at)


def check_request(request: Request) -> None:
    """Checks the values of a request.

    Raises:
        ValueError: a time or size is not finite or below 0, a number of tokens not whole, or an answer has none.
    """
    for name in ("at", "megapixels"):
        if not (math.isfinite(value := getattr(request, name)) and value >= 0):
            raise ValueError(f"{name} is {value}; it must be a finite number of at least 0")
    for name, least in (("visual", 0), ("text", 0), ("answer", 1)):
        if type(value := getattr(request, name)) is not int or value < least:
            raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {least}")
