"""What one request to a server may hold."""

from __future__ import annotations

from dataclasses import dataclass, field

from llava.images import DEFAULT_LIMITS, ImageLimits
from llava.serve.http.failures import RequestError


@dataclass(frozen=True)
class RequestLimits:
    """What one request may hold."""

    max_body: int = 64 * 2**20
    """Largest body, in bytes."""
    body_timeout: float = 60.0
    """Seconds within which a body must have arrived."""
    max_images: int = 16
    """Most pictures."""
    max_prompt: int = 100_000
    """Longest text, in characters, all messages together."""
    image: ImageLimits = field(default=DEFAULT_LIMITS)
    """What each picture may cost."""
    media_hosts: frozenset[str] = frozenset()
    """Hosts that image URLs may name; with none, image URLs are off."""

    def __post_init__(self) -> None:
        for name in ("max_body", "body_timeout", "max_images", "max_prompt"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    def check(self, images: int, characters: int) -> None:
        """Raises RequestError if a request has too many pictures or too much text."""
        if images > self.max_images:
            raise RequestError(400, "too_many_images", f"{images} images; at most {self.max_images} are allowed")
        if characters > self.max_prompt:
            allowed = f"at most {self.max_prompt:,} are allowed"
            raise RequestError(400, "prompt_too_long", f"the text has {characters:,} characters; {allowed}")
