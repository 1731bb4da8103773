"""Asks OpenAI's moderation service about a question before a model gets it. The page's only call to another host.

Used where the operator says so (`--moderate`), with the operator's key. Where no verdict can be had, nothing passes.
"""

from __future__ import annotations

import os

import httpx

from llava.serve.errors import RequestError

KEY_VARIABLE = "OPENAI_API_KEY"
URL_VARIABLE = "OPENAI_BASE_URL"
DEFAULT_URL = "https://api.openai.com/v1"
MODEL = "omni-moderation-latest"
TIMEOUT = 15.0  # seconds


class Moderator:
    """Refuses what the service flags. It is shown the question's text, not the picture."""

    def __init__(self, key: str, base_url: str = DEFAULT_URL) -> None:
        """
        Args:
            key: Of the service.
            base_url: Of the service, up to its version.
        """
        self.key, self.url = key, f"{base_url.rstrip('/')}/moderations"

    @classmethod
    def from_environment(cls) -> Moderator:
        """Takes the key, and the address where it is another, from OpenAI's environment variables.

        Raises:
            ValueError: there is no key.
        """
        key = os.environ.get(KEY_VARIABLE, "").strip()
        if not key:
            raise ValueError(f"--moderate needs an OpenAI key in the environment variable {KEY_VARIABLE}")
        return cls(key, os.environ.get(URL_VARIABLE) or DEFAULT_URL)

    async def check(self, text: str) -> None:
        """Returns if the text may pass.

        Raises:
            RequestError: it is flagged, or the service gave no verdict.
        """
        try:
            async with httpx.AsyncClient(timeout=TIMEOUT) as client:
                headers = {"Authorization": f"Bearer {self.key}"}
                reply = await client.post(self.url, json={"model": MODEL, "input": text}, headers=headers)
                flagged = reply.raise_for_status().json()["results"][0]["flagged"]
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise RequestError(502, "moderation_failed", "the question could not be checked by moderation") from error
        if flagged:
            raise RequestError(400, "flagged", "the question does not pass moderation")
