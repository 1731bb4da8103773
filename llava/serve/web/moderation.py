"""Checks questions with OpenAI's moderation before a model gets them: the page's only call to another host.

Used with `--moderate` and the operator's key. If the service gives no verdict, the question is refused.
"""

from __future__ import annotations

from llava.moderation import ModerationError, ModerationService
from llava.serve.http.failures import RequestError


class Moderator(ModerationService):
    """Refuses questions that the service flags. The service gets the question's text, not the picture."""

    async def check(self, text: str) -> None:
        """Raises an error unless the text passes moderation.

        Raises:
            RequestError: the text is flagged, or the service gave no verdict.
        """
        try:
            flagged = await self.aflags(text)
        except ModerationError as error:
            raise RequestError(502, "moderation_failed", "the question could not be checked by moderation") from error
        if flagged:
            raise RequestError(400, "flagged", "the question does not pass moderation")
