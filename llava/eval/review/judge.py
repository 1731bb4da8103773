"""A judge: a language model that is asked by the OpenAI protocol, whoever serves it."""

from __future__ import annotations

import os
from typing import Any

from llava.eval.review.reviews import UNREAD, read_scores

KEY, ADDRESS = "OPENAI_API_KEY", "OPENAI_BASE_URL"
"""Variables of the environment that hold the key, and the address of another server than OpenAI's."""

SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."
"""What LLaVA tells the judge first."""

TEMPERATURE = 0.2
RETRIES = 8
"""Of a request that the server is too busy for, or that gets lost, each after a longer pause."""
SHOWN = 200
"""Characters of an odd reply in a message."""
ROUNDS = 3
"""How often the judge is asked for a review with scores."""


class Judge:
    """Asks a model for reviews.

    Args:
        model: its name on the server.
        address: of the server, such as http://localhost:8000/v1; None is `OPENAI_BASE_URL`, or OpenAI's.
        max_tokens: longest review, in tokens.

    Raises:
        ImportError: the package openai is not installed.
        ValueError: OpenAI's server is to be asked, and there is no key.
    """

    def __init__(self, model: str, address: str | None = None, max_tokens: int = 1024) -> None:
        try:
            import openai
        except ImportError:
            raise ImportError('asking a judge takes the package openai: pip install ".[eval]"') from None
        address = address or os.environ.get(ADDRESS) or None
        key = os.environ.get(KEY)
        if not key and address is None:
            raise ValueError(
                f"{KEY} is not set; a judge of OpenAI's needs it. For another server give --base-url or {ADDRESS}"
            )
        self.model = model
        self.max_tokens = max_tokens
        self._key = key
        self._client = openai.OpenAI(api_key=key or "none", base_url=address, max_retries=RETRIES)

    def review(self, request: str) -> tuple[str, tuple[float, float]]:
        """Asks for a review, again if it gives no scores.

        Returns:
            The review and its scores; the last one and `UNREAD` if none gives scores.

        Raises:
            OSError: the server cannot be reached, or refuses.
        """
        text = ""
        for _ in range(ROUNDS):
            text = self._ask(request)
            if (scores := read_scores(text)) != UNREAD:
                return text, scores
        return text, UNREAD

    def _ask(self, request: str) -> str:
        import openai

        messages: Any = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": request}]
        try:
            reply = self._client.chat.completions.create(
                model=self.model, messages=messages, temperature=TEMPERATURE, max_tokens=self.max_tokens
            )
        except openai.APIStatusError as error:
            said = error.body.get("message") if isinstance(error.body, dict) else None
            fault = f"answers {error.status_code}: {said or error.response.reason_phrase}"
            raise OSError(self._describe(fault)) from None
        except (openai.OpenAIError, ValueError) as error:  # ValueError: no JSON
            raise OSError(self._describe(f"gives no answer: {error}")) from None
        return self._read(reply)

    def _read(self, reply: Any) -> str:
        """Reads the review in a reply; gateways and login pages also say with status 200 that there is none."""
        choices = getattr(reply, "choices", None)
        text = getattr(getattr(choices[0], "message", None), "content", None) if choices else None
        if not isinstance(text, str):
            said = reply if isinstance(reply, str) else getattr(reply, "error", None) or reply
            raise OSError(self._describe(f"gives no answer, but {str(said)[:SHOWN]!r}"))
        return text

    def _describe(self, fault: str) -> str:
        """Names the server and the model of a fault, without the key, which servers may repeat."""
        text = f"the judge {self.model} at {self._client.base_url} {fault}"
        return text.replace(self._key, "***") if self._key else text
