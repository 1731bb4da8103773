"""Seconds that each stage of a request takes on one replica, read from a file of measurements."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Request:
    """What one request asks of a replica."""

    at: float
    """Arrival, in seconds."""
    megapixels: float
    """Size of its image."""
    visual: int
    """Visual tokens."""
    text: int
    """Text tokens of the prompt."""
    answer: int
    """Tokens of the answer, at least 1."""

    @property
    def prompt(self) -> int:
        """Tokens of the prompt."""
        return self.visual + self.text


@dataclass(frozen=True)
class StageTimes:
    """Every stage is linear in what it works on; all values are seconds."""

    prepare: float = 0.0
    """Time of an image in one preparing thread: HTTP, opening, resizing, cutting; whatever its size."""
    prepare_per_megapixel: float = 0.0
    encode: float = 0.0
    """Time of a batch of images in the vision tower and the projector, whatever its size."""
    encode_per_token: float = 0.0
    """Time of a visual token there."""
    prefill: float = 0.0
    """Time of a batch of prompts in the language model, whatever its size."""
    prefill_per_token: float = 0.0
    """Time of a token of a prompt, text or visual."""
    decode: float = 0.0
    """Time of one step, in which every running answer gets a token."""
    decode_per_row: float = 0.0
    """Time that each running answer adds to a step."""
    decode_per_context: float = 0.0
    """Time that each token of the running answers' contexts adds to a step."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (isinstance(value, (int, float)) and math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value!r}; it must be a number of seconds, at least 0")

    def preparing(self, request: Request) -> float:
        """Computes the seconds of a preparing thread."""
        return self.prepare + self.prepare_per_megapixel * request.megapixels

    def starting(self, requests: list[Request]) -> float:
        """Computes the model's seconds until the first tokens of requests that start together."""
        visual = sum(request.visual for request in requests)
        text = sum(request.text for request in requests)
        return self.encoding(visual) + self.prefilling(visual + text)

    def encoding(self, visual: int) -> float:
        """Computes the seconds of the tower for `visual` tokens together; without images it does not run."""
        return self.encode + self.encode_per_token * visual if visual else 0.0

    def prefilling(self, tokens: float) -> float:
        """Computes the language model's seconds for `tokens` of prompts together."""
        return self.prefill + self.prefill_per_token * tokens

    def pieces(self, requests: Sequence[Request], most_tokens: int) -> list[float]:
        """Computes the model's seconds of each piece of the work until the first tokens of requests that join.

        Images are run together up to `most_tokens`, then the prompts, padded to the longest, in pieces of that size.
        """
        parts: list[int] = [0]
        for request in requests:
            if parts[-1] and parts[-1] + request.visual > most_tokens:
                parts.append(0)
            parts[-1] += request.visual
        longest = max(request.prompt for request in requests)
        count = max(1, -(-longest // max(1, most_tokens // len(requests))))
        padded = longest * len(requests)
        return [*map(self.encoding, parts), *[self.prefilling(padded / count)] * count]

    def stepping(self, rows: int, context: int) -> float:
        """Computes the model's seconds of one token for each of `rows` answers with `context` tokens in all."""
        return self.decode + self.decode_per_row * rows + self.decode_per_context * context

    def most_per_second(self, request: Request, slots: int, preparers: int) -> float:
        """Computes the requests per second at which a replica is busy all the time, if all are like this one.

        With all slots taken a request costs the model its start and its share of its steps; in the middle of an answer
        half of it is in the context.
        """
        context = slots * (request.visual + request.text + request.answer // 2)
        steps = (request.answer - 1) * self.stepping(slots, context) / slots
        model = self.starting([request]) + steps
        preparing = self.preparing(request) / preparers
        return 1 / max(model, preparing, 1e-12)


def read_times(path: Path) -> StageTimes:
    """Reads a file of measured times.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON of {"device": "...", "seconds": {a field of `StageTimes`: seconds}}.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from None
    seconds = content.get("seconds") if isinstance(content, Mapping) else None
    if not isinstance(seconds, Mapping):
        raise ValueError(f'{path} has no "seconds", an object of stages and their times')
    known = [field.name for field in fields(StageTimes)]
    if unknown := sorted(set(seconds) - set(known)):
        raise ValueError(f"{path} has {unknown[0]!r}; allowed are {', '.join(known)}")
    try:
        return StageTimes(**seconds)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def write_times(path: Path, times: StageTimes, device: str) -> None:
    """Writes a file that `read_times` reads; `device` says where the times were measured."""
    content: dict[str, Any] = {"device": device, "seconds": vars(times)}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
