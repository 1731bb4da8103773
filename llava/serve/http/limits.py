"""Limits of a server: what one request may hold, and how many connections its clients may open."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass, field, replace

from llava.serve.http.failures import RequestError
from qlip.images.limits import DEFAULT_LIMITS, ImageLimits

try:
    import resource
except ImportError:  # Windows has no such limits
    resource = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

BACKLOG = 512  # connections that the system accepts before the server looks at the first of them
MAX_NAME = 500  # characters of a name that servers and their clients know each other by
OTHER_FILES = 256  # the server's own open files: libraries, checkpoints, pipes


@dataclass(frozen=True)
class RequestLimits:
    """What one request may hold."""

    max_body: int = 64 * 2**20
    """Largest body, in bytes."""
    body_timeout: float = 60.0
    """Seconds within which a body must have arrived."""
    max_images: int = 16
    """Most images."""
    max_prompt: int = 100_000
    """Longest text, in characters, all messages together."""
    image: ImageLimits = field(default=DEFAULT_LIMITS)
    """What each image may cost."""
    media_hosts: frozenset[str] = frozenset()
    """Hosts that image URLs may name; with none, image URLs are off."""

    def __post_init__(self) -> None:
        _check_positive(self, "max_body", "body_timeout", "max_images", "max_prompt")

    def check(self, images: int, characters: int) -> None:
        """Raises RequestError if a request has too many images or too much text."""
        if images > self.max_images:
            raise RequestError(400, "too_many_images", f"{images} images; at most {self.max_images} are allowed")
        if characters > self.max_prompt:
            allowed = f"at most {self.max_prompt:,} are allowed"
            raise RequestError(400, "prompt_too_long", f"the text has {characters:,} characters; {allowed}")


@dataclass(frozen=True)
class ConnectionLimits:
    """How many connections the clients of a server may open, and for how long they may leave one idle."""

    most: int = 1000
    """Connections in all."""
    header_timeout: float = 20.0
    """Seconds for a request's headers, from the opening of the connection or from the end of the last reply."""
    stall_timeout: float = 60.0
    """Seconds for which a client may read nothing of its reply, or send on a body whose reply has ended."""

    def __post_init__(self) -> None:
        _check_positive(self, "most", "header_timeout", "stall_timeout")

    @property
    def most_of_client(self) -> int:
        """Connections of one address that is not loopback.

        A quarter leaves room for others even where three clients misbehave. A proxy on this machine connects from
        loopback, with the connections of all its clients.
        """
        return max(1, self.most // 4)


def _check_positive(limits: object, *names: str) -> None:
    for name in names:
        if getattr(limits, name) <= 0:
            raise ValueError(f"{name} must be positive, got {getattr(limits, name)}")


def fit_open_files(limits: ConnectionLimits) -> ConnectionLimits:
    """Raises the process's limit on open files as far as needed; allows fewer connections if it stays lower."""
    if resource is None:
        return limits
    # A controller opens one connection to a worker for each connection of a client.
    needed = 2 * limits.most + BACKLOG + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with suppress(OSError, ValueError):  # macOS has a second, lower limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return limits
    most = max(16, (soft - BACKLOG - OTHER_FILES) // 2)
    logger.warning("the limit on open files, %d, allows %d connections; raise it by ulimit -n %d", soft, most, needed)
    return replace(limits, most=most)
