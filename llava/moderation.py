"""A client of OpenAI's moderation service, with the key in the environment."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import httpx

from llava.tls import tls_context

if TYPE_CHECKING:
    from typing_extensions import Self

KEY_VARIABLE = "OPENAI_API_KEY"
URL_VARIABLE = "OPENAI_BASE_URL"
DEFAULT_URL = "https://api.openai.com/v1"
MODEL = "omni-moderation-latest"
TIMEOUT = 15.0  # seconds


class ModerationError(RuntimeError):
    """The service gave no verdict."""


class ModerationService:
    """The service at one address, with one key. It gets text, no images."""

    def __init__(self, key: str, base_url: str = DEFAULT_URL) -> None:
        """
        Args:
            key: API key of the service.
            base_url: Address of the service, up to its version.
        """
        self.key, self.url = key, f"{base_url.rstrip('/')}/moderations"

    @classmethod
    def from_environment(cls, asker: str = "moderation") -> Self:
        """Reads the key, and the address if it is set, from OpenAI's environment variables.

        Args:
            asker: The feature that needs the key, for the error.

        Raises:
            ValueError: there is no key.
        """
        key = os.environ.get(KEY_VARIABLE, "").strip()
        if not key:
            raise ValueError(f"{asker} needs an OpenAI key in the environment variable {KEY_VARIABLE}")
        return cls(key, os.environ.get(URL_VARIABLE) or DEFAULT_URL)

    def flags(self, text: str) -> bool:
        """Asks the service whether it flags a text.

        Raises:
            ModerationError: it gave no verdict.
        """
        try:
            with httpx.Client(timeout=TIMEOUT, verify=tls_context(trust_env=True)) as client:
                return _verdict(client.post(self.url, **self._request(text)))
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise ModerationError(f"moderation gave no verdict: {type(error).__name__}") from error

    async def aflags(self, text: str) -> bool:
        """`flags`, for an event loop."""
        try:
            async with httpx.AsyncClient(timeout=TIMEOUT, verify=tls_context(trust_env=True)) as client:
                return _verdict(await client.post(self.url, **self._request(text)))
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise ModerationError(f"moderation gave no verdict: {type(error).__name__}") from error

    def _request(self, text: str) -> dict[str, Any]:
        return {"json": {"model": MODEL, "input": text}, "headers": {"Authorization": f"Bearer {self.key}"}}


def _verdict(reply: httpx.Response) -> bool:
    return bool(reply.raise_for_status().json()["results"][0]["flagged"])
