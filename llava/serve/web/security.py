"""ASGI middleware of the page's server: headers for browsers, a limit on bodies, and 400 for malformed calls."""

from __future__ import annotations

import logging

from gradio.route_utils import FnIndexInferError
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava.serve.http.bodies import BodyLimit
from llava.serve.http.guards import ErrorGuard

logger = logging.getLogger(__name__)

POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; object-src 'none'; base-uri 'self'; "
    "form-action 'self'"
)
HEADERS = {
    b"content-security-policy": POLICY.encode(),
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
}

UPLOADS = "/gradio_api/upload"
MAX_BODY = 2**20  # bytes of an event's values; pictures are uploaded before
BODY_TIMEOUT = 60.0  # seconds


class PageHeaders:
    """ASGI middleware: adds the headers to every reply."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection."""

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [(name, value) for name, value in message["headers"] if name.lower() not in HEADERS]
                message = {**message, "headers": [*kept, *HEADERS.items()]}
            await send(message)

        await self.app(scope, receive, send_on)


class LimitBodies:
    """ASGI middleware: bounds the body of every request but uploads, which Gradio writes to files of bounded size."""

    def __init__(self, app: ASGIApp) -> None:
        self.app, self.bounded = app, BodyLimit(app, MAX_BODY, BODY_TIMEOUT)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection."""
        is_upload = scope["type"] == "http" and scope["path"].endswith(UPLOADS)
        await (self.app if is_upload else self.bounded)(scope, receive, send)


class RefuseMalformedCalls(ErrorGuard):
    """ASGI middleware: answers a call of an unknown event with 400, where Gradio fails with a traceback."""

    def reply_to(self, error: Exception, scope: Scope) -> ASGIApp | None:
        """Builds the reply to a malformed call, and one that nobody reads to an upload that its visitor has stopped."""
        if isinstance(error, ClientDisconnect):
            return Response(status_code=400)
        if scope["method"] != "POST" or not isinstance(error, FnIndexInferError | LookupError | TypeError | ValueError):
            return None
        logger.warning("refused a call of %s (%s)", ascii(scope["path"][:100]), type(error).__name__)
        text = "the page has no such event, or its values are malformed; GET /gradio_api/info lists the events"
        return JSONResponse({"error": text}, 400)
