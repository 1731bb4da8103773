"""Worker authentication: a shared token, or loopback only."""

from __future__ import annotations

import re
from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from llava.serve.http.addresses import is_loopback
from llava.serve.http.auth import bearer_token, is_one_of
from llava.serve.http.failures import Failure, RequestError
from llava.serve.http.replies import error_response
from llava.serve.http.routing import route_path
from llava.serve.workers.flags import WORKER_TOKEN_VARIABLE
from llava.serve.workers.protocol import ANSWERS, STATUS


def refusal(token: str | None) -> RequestError:
    """Builds the error for a request that does not come from an authenticated worker.

    Args:
        token: The controller's token; the error does not repeat it.
    """
    why = "workers need the controller's secret" if token else "without a secret, workers must be on its own machine"
    return RequestError(403, "worker_refused", f"{why}: give --worker-token or ${WORKER_TOKEN_VARIABLE} to both")


def controller_tokens(token: str | None) -> dict[str, str]:
    """Maps the paths that a controller calls of a worker, or of a controller below it, to the token that they share."""
    return {ANSWERS: token, STATUS: token} if token else {}


class WorkersOnly:
    """ASGI middleware: workers' routes need the token; without a token, the request must come from this machine."""

    def __init__(
        self, app: ASGIApp, token: str | None, on_loopback: bool, paths: Collection[str] | None = None
    ) -> None:
        """
        Args:
            app: The application, or a single route.
            token: The shared token.
            on_loopback: Whether the server listens on loopback addresses only.
            paths: The workers' routes; None checks every request.
        """
        self.app, self.token, self.on_loopback = app, token, on_loopback
        self.paths = None if paths is None else frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection."""
        # A route's pattern, which ends in `$`, also matches its path with a line feed after it.
        is_worker = scope["type"] == "http" and (self.paths is None or route_path(scope).rstrip("\n") in self.paths)
        if is_worker and not self._is_allowed(scope):
            error = refusal(self.token)
            await error_response(Failure(error.status, error.kind, str(error)))(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _is_allowed(self, scope: Scope) -> bool:
        if self.token:
            return is_one_of(bearer_token(scope["headers"]), [self.token.encode()])
        # A page in a local browser also connects from loopback, but names the host of its own server.
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        peer, _ = scope["client"] or ("", 0)
        return self.on_loopback and is_loopback(peer) and is_loopback(re.sub(r":[0-9]+$", "", host))
