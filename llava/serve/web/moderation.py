"""Has a question checked by OpenAI's moderation before a model gets it. The page's only call to another host.

Used where the operator says so (`--moderate`), with the operator's key. Where no verdict can be had, nothing passes.
"""

from __future__ import annotations

from llava.moderation import ModerationFailed, ModerationService
from llava.serve.http.failures import RequestError


class Moderator(ModerationService):
    """Refuses what the service flags. It is shown the question's text, not the picture."""

    async def check(self, text: str) -> None:
        """Returns if the text may pass.

        Raises:
            RequestError: it is flagged, or the service gave no verdict.
        """
        try:
            flagged = await self.aflags(text)
        except ModerationFailed as error:
            raise RequestError(502, "moderation_failed", "the question could not be checked by moderation") from error
        if flagged:
            raise RequestError(400, "flagged", "the question does not pass moderation")
