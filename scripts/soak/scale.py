"""How long a soak run is and how much it sends. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """How much is sent to the servers."""

    seconds: float = 300.0
    """Length of the attack."""
    quiet: float = 30.0
    """Seconds of good requests alone, timed before the attack."""
    burst: int = 80
    """Requests at once, to fill the queues."""
    large_bodies: int = 20
    """Bodies of 60 MiB each, sent at once."""
    longest: int = 128
    """Tokens of each answer of the burst; enough that they last until all of it has arrived."""
    slow_images: int = 4
    """Images sent at once by clients that hang up."""
    measured: bool = True
    """Whether latency and memory are promises; a short run, on a busy machine, only prints them."""


QUICK = Scale(seconds=1.0, quiet=0.5, burst=40, longest=64, large_bodies=2, slow_images=1, measured=False)
