"""The servers under attack, and what counts as a correct reply from them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from scripts.soak import hostile

Complaint = str | None
"""What was wrong with a reply; None if nothing was."""


@dataclass
class Target:
    """The servers under attack, and the parts of a good request to them."""

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
    """Seconds within which /health must answer."""
    numbers: itertools.count[int] = field(default_factory=itertools.count)
    made: dict[str, bytes] = field(default_factory=dict)

    def worker(self) -> str:
        """Picks a worker, in turn."""
        return self.workers[next(self.numbers) % len(self.workers)]

    def image(self, name: str) -> bytes:
        """Makes a hostile image; once, since some take seconds."""
        if name not in self.made:
            self.made[name] = hostile.slow_jpeg() if name == "slow" else hostile.PICTURES[name][0]()
        return self.made[name]

    def chat(self, **fields: Any) -> dict[str, Any]:
        """Makes a good request of the OpenAI protocol."""
        return {**hostile.good(hostile.OPENAI, self.model, self.picture, "What is in the picture?"), **fields}

    def about(self, path: str, image: bytes) -> dict[str, Any]:
        """Makes a request about another image."""
        return hostile.good(path, self.model, hostile.encoded(image), "What is in the picture?", self.prompt)


def unless(fine: bool, what: str, reply: httpx.Response) -> Complaint:
    """Makes a complaint with the request and the reply; None if the reply is fine."""
    return None if fine else f"{what}: {reply.status_code} {reply.text[-120:]}"


def is_answer(reply: httpx.Response) -> bool:
    """Checks whether a reply is a complete answer, in either protocol; its status alone does not show it."""
    if reply.status_code != 200:
        return False
    last = json.loads(reply.content.rstrip(b"\0").rpartition(b"\0")[2])
    return bool(last.get("finish_reason") or last.get("choices", [{}])[0].get("finish_reason"))
