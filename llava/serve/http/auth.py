"""Client authentication: API keys, and no requests from pages of other origins."""

from __future__ import annotations

import hmac
from collections.abc import Collection, Mapping, Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from llava.serve.http.failures import Failure
from llava.serve.http.keys import TOKEN_RULE, is_bearer_token
from llava.serve.http.replies import error_response
from llava.serve.http.routing import route_path


class SameOrigin:
    """ASGI middleware: refuses requests that a page of another origin makes a browser send.

    A browser asks before it sends JSON for a page of another origin, but not before it sends text or a form, and not
    all routes here insist on JSON's content type. That type cannot decide: `curl -d` sends a form's. The origin can:
    today's browsers send it with every POST, by `Sec-Fetch-Site` over https and on localhost (Chrome since 76,
    Firefox 90, Safari 16.4) and by `Origin` everywhere, neither of which a page can set. Programs send neither.
    """

    def __init__(self, app: ASGIApp) -> None:
        """
        Args:
            app: The application.
        """
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection."""
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD", "OPTIONS") and is_cross_origin(scope):
            message = (
                "a page of another origin may not send requests here; send them from a program, or serve the page from"
                " this server's own host and port"
            )
            await error_response(Failure(403, "cross_origin", message))(scope, receive, send)
            return
        await self.app(scope, receive, send)


def is_cross_origin(scope: Scope) -> bool:
    """Whether a browser reports that the request comes from a page of another origin."""
    headers = dict(scope["headers"])
    if site := headers.get(b"sec-fetch-site"):  # if present it is right, also behind a proxy that changes Host
        return site not in (b"same-origin", b"none")
    origin = headers.get(b"origin")
    return origin is not None and origin.partition(b"://")[2].lower() != headers.get(b"host", b"").lower()


class RequireKey:
    """ASGI middleware: accepts requests that carry one of the keys as a bearer token; without keys, all requests."""

    def __init__(
        self,
        app: ASGIApp,
        keys: Collection[str],
        open_paths: Collection[str] = ("/health",),
        path_tokens: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            app: The application.
            keys: The keys; none leaves the server open.
            open_paths: Paths that need no key.
            path_tokens: Path -> one more key, accepted for that path alone.

        Raises:
            ValueError: a key is empty, which would accept every request, or no header can carry it.
        """
        if not all(map(is_bearer_token, keys)):
            raise ValueError(f"an API key {TOKEN_RULE}")
        self.app, self.keys, self.open_paths = app, [key.encode() for key in keys], frozenset(open_paths)
        self.path_tokens = {path: token.encode() for path, token in (path_tokens or {}).items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection."""
        if scope["type"] in ("http", "websocket") and not self._is_allowed(scope):
            failure = Failure(401, "invalid_api_key", "an API key is needed: Authorization: Bearer KEY")
            await error_response(failure)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _is_allowed(self, scope: Scope) -> bool:
        path = route_path(scope)
        if not self.keys or path in self.open_paths:
            return True
        keys = [*self.keys, self.path_tokens[path]] if path in self.path_tokens else self.keys
        return is_one_of(bearer_token(scope["headers"]), keys)


def bearer_token(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Reads the token of the Authorization header; empty if there is none."""
    scheme, _, token = dict(headers).get(b"authorization", b"").partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else b""


def bearer_header(token: str | None) -> dict[str, str]:
    """Builds the Authorization header of a token; without a token, no header."""
    return {"Authorization": f"Bearer {token}"} if token else {}


def is_one_of(token: bytes, keys: Sequence[bytes]) -> bool:
    """Whether a token is among the keys, compared in constant time."""
    return any([hmac.compare_digest(token, key) for key in keys])
