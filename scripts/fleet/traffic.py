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
        ValueError: a line is not such an object, or an answer has no token.
    """
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            request = Request(**json.loads(line))
            if not (request.answer >= 1 and min(request.at, request.megapixels, request.visual, request.text) >= 0):
                raise ValueError("values must be at least 0, and answer at least 1")
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}:{number} is not a request of a trace: {error}") from None
        found.append(request)
    return sorted(found, key=lambda request: request.at)
