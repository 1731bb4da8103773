"""What every server here shares: limits on requests, API keys, flags, an orderly end. Knows no protocol, no model."""

from __future__ import annotations

import argparse
import hmac
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava.command import integer
from llava.serve.addresses import is_host_name
from llava.serve.connections import BACKLOG, ConnectionLimits, fit_open_files
from llava.serve.errors import Failure, RequestError, explain, ran_out_of_memory
from llava.serve.images import DEFAULT_LIMITS, ImageLimits
from llava.serve.listening import Listener, port_number

logger = logging.getLogger(__name__)

API_KEY_VARIABLE = "LLAVA_API_KEY"
Hook = Callable[[], Awaitable[None]]

GRACE = 60  # seconds that running streams have to finish when a server is told to stop


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


def error_response(failure: Failure, param: str | None = None) -> JSONResponse:
    """Returns the reply that tells a client of a failure."""
    return JSONResponse(failure.body(param), failure.status, failure.headers)


class SameOrigin:
    """ASGI middleware: refuses what a page of another origin makes a browser send.

    A browser asks before it sends JSON for a foreign page, but not before it sends text or a form, and the routes here
    do not all insist on JSON's content type. That type cannot decide: `curl -d` sends a form's. Who asks can: today's
    browsers say so with every POST, by `Sec-Fetch-Site` over https and on localhost (Chrome since 76, Firefox 90,
    Safari 16.4) and by `Origin` everywhere, neither of which a page can set. Programs send neither.
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
    """Whether a browser says that a page of another origin asks."""
    headers = dict(scope["headers"])
    if site := headers.get(b"sec-fetch-site"):  # where it is there it is right, also behind a proxy that changes Host
        return site not in (b"same-origin", b"none")
    origin = headers.get(b"origin")
    return origin is not None and origin.partition(b"://")[2].lower() != headers.get(b"host", b"").lower()


class MemoryGuard:
    """ASGI middleware: a request for which memory does not suffice is one to send again, no fault of the server."""

    def __init__(self, app: ASGIApp) -> None:
        """
        Args:
            app: The application.
        """
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection."""
        begun = False

        async def note(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, note)
        except Exception as error:
            if begun or scope["type"] != "http" or not ran_out_of_memory(error):
                raise
            await error_response(explain(error))(scope, receive, send)


class RequireKey:
    """ASGI middleware: lets requests in that carry one of the keys, as a bearer token; without keys, all."""

    def __init__(self, app: ASGIApp, keys: Collection[str], open_paths: Collection[str] = ("/health",)) -> None:
        """
        Args:
            app: The application.
            keys: The keys; none leaves the server open.
            open_paths: Paths that need no key.

        Raises:
            ValueError: a key is empty, which would let everybody in.
        """
        if not all(keys):
            raise ValueError("an API key is empty")
        self.app, self.keys, self.open_paths = app, [key.encode() for key in keys], frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection."""
        guarded = scope["type"] in ("http", "websocket") and scope["path"] not in self.open_paths
        if guarded and self.keys and not is_one_of(bearer_token(scope["headers"]), self.keys):
            failure = Failure(401, "invalid_api_key", "an API key is needed: Authorization: Bearer KEY")
            await error_response(failure)(scope, receive, send)
            return
        await self.app(scope, receive, send)


def bearer_token(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Returns the token of the Authorization header; empty where there is none."""
    scheme, _, token = dict(headers).get(b"authorization", b"").partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else b""


def bearer_header(token: str | None) -> dict[str, str]:
    """Returns the header that carries a token; none without one."""
    return {"Authorization": f"Bearer {token}"} if token else {}


def is_one_of(token: bytes, keys: Sequence[bytes]) -> bool:
    """Whether a token is among the keys; takes as long wherever they differ."""
    return any([hmac.compare_digest(token, key) for key in keys])


def add_server_flags(parser: argparse.ArgumentParser, port: int, reads: bool = True) -> None:
    """Adds the flags of where to listen, whom to let in and what a request may cost.

    Args:
        parser: Gets the flags.
        port: The default.
        reads: Whether the server looks into requests; one that only passes them on limits their size alone.
    """
    defaults = RequestLimits()
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=port_number, default=port, help=f"port; 0 is any free one (default: {port})")
    parser.add_argument(
        "--api-key",
        action="extend",
        nargs="+",
        type=key_text,
        metavar="KEY",
        help=f"let only requests with such a key in; repeatable; or ${API_KEY_VARIABLE}, where blanks separate several",
    )
    parser.add_argument("--max-body-bytes", type=integer(), default=defaults.max_body, help="largest request")
    parser.add_argument(
        "--max-connections",
        type=integer(),
        default=ConnectionLimits().most,
        help="most connections; of one client address that is not loopback, a quarter (default: %(default)s)",
    )
    if not reads:
        return
    parser.add_argument(
        "--allowed-media-domains",
        nargs="+",
        default=[],
        metavar="HOST",
        type=_host,
        help="hosts that image URLs may name (default: none, pictures come inside the request)",
    )
    parser.add_argument("--max-images", type=integer(), default=defaults.max_images, help="most pictures in a request")
    parser.add_argument(
        "--max-image-bytes", type=integer(), default=defaults.image.max_bytes, help="largest image file"
    )
    parser.add_argument("--max-image-pixels", type=integer(), default=defaults.image.max_pixels, help="largest picture")
    parser.add_argument("--max-prompt-chars", type=integer(), default=defaults.max_prompt, help="longest text")


def key_text(text: str) -> str:
    """Type of a flag that takes an API key; says nothing of what it is."""
    if not text.strip():
        raise argparse.ArgumentTypeError("a key may not be empty; leave the flag out to do without")
    return text


def _host(text: str) -> str:
    try:
        host = httpx.URL(f"http://{text}").raw_host.decode("ascii").lower()
    except (httpx.InvalidURL, ValueError):  # of half characters
        host = ""
    if not is_host_name(host) or any(sign in text for sign in ":/@?# "):
        raise argparse.ArgumentTypeError(f"{text!r} is no host name; give it without scheme, port or path")
    return host


def request_limits(args: argparse.Namespace) -> RequestLimits:
    """Returns the limits that the flags of `add_server_flags` state, of a server that reads requests."""
    return RequestLimits(
        max_body=args.max_body_bytes,
        max_images=args.max_images,
        max_prompt=args.max_prompt_chars,
        image=ImageLimits(max_bytes=args.max_image_bytes, max_pixels=args.max_image_pixels),
        media_hosts=frozenset(args.allowed_media_domains),
    )


def api_keys(args: argparse.Namespace) -> list[str]:
    """Returns the keys of `--api-key` or else of the environment."""
    return args.api_key or os.environ.get(API_KEY_VARIABLE, "").split()


def log_to_console() -> None:
    """Writes what the servers log to stderr, a line each; their clients' chatter is left out."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s | %(levelname)s | %(name)s | %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)


class Server(uvicorn.Server):
    """Says when it begins to listen and when it is told to stop; the latter before it waits for running streams."""

    def __init__(
        self, config: uvicorn.Config, on_start: Hook | None = None, on_stop: Hook | None = None, at: str = ""
    ) -> None:
        """
        Args:
            config: uvicorn's.
            on_start: Awaited once the server listens.
            on_stop: Awaited once it is told to stop, while it still listens.
            at: The address, for the log.
        """
        super().__init__(config)
        self.on_start, self.on_stop, self.at = on_start, on_stop, at

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to listen."""
        await super().startup(sockets)
        if self.started:
            logger.info("listening on %s", self.at)
            if self.on_start is not None:
                await self.on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Lets running streams end."""
        if self.on_stop is not None:
            await self.on_stop()
        await super().shutdown(sockets)


def server_config(app: Any, limits: ConnectionLimits) -> uvicorn.Config:
    """Makes uvicorn's configuration of a server that keeps its connections within limits."""
    return uvicorn.Config(
        app,
        http=limits.protocol(),  # type: ignore[arg-type]
        ws="none",
        log_level="warning",
        server_header=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=GRACE,
    )


def serve(
    app: Any,
    listener: Listener,
    on_start: Hook | None = None,
    on_stop: Hook | None = None,
    limits: ConnectionLimits | None = None,
) -> None:
    """Runs an ASGI application until SIGINT or SIGTERM, and then until its running streams have ended.

    Args:
        app: The application.
        listener: Where to listen.
        on_start: See `Server`.
        on_stop: See `Server`.
        limits: What clients may take of the server.

    Raises:
        ValueError: another program listens there by now.
    """
    config = server_config(app, fit_open_files(limits or ConnectionLimits()))
    listener.listen()
    with suppress(KeyboardInterrupt):
        Server(config, on_start, on_stop, f"{listener.host}:{listener.port}").run(list(listener.sockets))
