"""ASGI middleware that answers exceptions of the application, as long as its reply has not begun."""

from __future__ import annotations

from abc import ABC, abstractmethod

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava.serve.engine.errors import ran_out_of_memory
from llava.serve.http.failures import explain
from llava.serve.http.replies import error_response


class ErrorGuard(ABC):
    """Answers some exceptions of an application; any other one, or one during a reply, is raised again."""

    def __init__(self, app: ASGIApp) -> None:
        """
        Args:
            app: The application.
        """
        self.app = app

    @abstractmethod
    def reply_to(self, error: Exception, scope: Scope) -> ASGIApp | None:
        """Builds the reply to an HTTP request that failed with `error`; None raises the exception again."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection."""
        begun = False

        async def note_start(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, note_start)
        except Exception as error:
            reply = None if begun or scope["type"] != "http" else self.reply_to(error, scope)
            if reply is None:
                raise
            await reply(scope, receive, send)


class MemoryGuard(ErrorGuard):
    """Answers 503 with Retry-After when memory runs out: the request may succeed later."""

    def reply_to(self, error: Exception, scope: Scope) -> ASGIApp | None:
        """Builds the reply to a request that ran out of memory."""
        return error_response(explain(error)) if ran_out_of_memory(error) else None
