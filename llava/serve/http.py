"""What every server here shares: limits on requests, API keys, flags, an orderly end. Knows no protocol, no model."""

from __future__ import annotations

import argparse
import asyncio
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

from llava.command import integer
from llava.serve.addresses import is_host_name
from llava.serve.errors import Failure, RequestError
from llava.serve.images import DEFAULT_LIMITS, ImageLimits
from llava.serve.listening import Listener, port_number

logger = logging.getLogger(__name__)

API_KEY_VARIABLE = "LLAVA_API_KEY"
Hook = Callable[[], Awaitable[None]]

MAX_VALUES = 1_000_000  # in a body: parsing many tiny ones takes a hundred times their bytes, and stops the event loop
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


class BodyLimit:
    """ASGI middleware: receives the whole body before the application runs; refuses one too large or too slow.

    A body that could hold more than `MAX_VALUES` JSON values is too large whatever its bytes.
    """

    def __init__(self, app: Any, max_body: int, timeout: float) -> None:
        """
        Args:
            app: The application.
            max_body: Most bytes.
            timeout: Seconds.
        """
        self.app, self.max_body, self.timeout = app, max_body, timeout

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handles one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            messages = await asyncio.wait_for(self._receive(scope, receive), self.timeout)
        except asyncio.TimeoutError:
            failure = Failure(408, "request_timeout", f"the request's body took longer than {self.timeout:g} seconds")
            await error_response(failure)(scope, receive, send)
            return
        except RequestError as error:
            await error_response(Failure(error.status, error.kind, str(error)))(scope, receive, send)
            return
        if messages is None:  # the client has gone
            return

        async def replay() -> Any:
            return messages.pop(0) if messages else await receive()

        await self.app(scope, replay, send)

    async def _receive(self, scope: Any, receive: Any) -> list[Any] | None:
        """The body's messages; None if its client goes away.

        Raises:
            RequestError: it exceeds a limit.
        """
        too_large = RequestError(413, "request_too_large", f"the request's body is larger than {self.max_body:,} bytes")
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self.max_body:
            raise too_large
        messages, size, values = [], 0, 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            messages.append(message)
            body = message.get("body", b"")
            size += len(body)
            values += sum(map(body.count, (b"[", b"{", b",")))
            if size > self.max_body:
                raise too_large
            if values > MAX_VALUES:
                raise RequestError(413, "request_too_large", f"the body holds more than {MAX_VALUES:,} values")
            if not message.get("more_body", False):
                return messages


class RequireKey:
    """ASGI middleware: lets requests in that carry one of the keys, as a bearer token; without keys, all."""

    def __init__(self, app: Any, keys: Collection[str], open_paths: Collection[str] = ("/health",)) -> None:
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

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
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


def serve(app: Any, listener: Listener, on_start: Hook | None = None, on_stop: Hook | None = None) -> None:
    """Runs an ASGI application until SIGINT or SIGTERM, and then until its running streams have ended.

    Args:
        app: The application.
        listener: Where to listen.
        on_start: See `Server`.
        on_stop: See `Server`.

    Raises:
        ValueError: another program listens there by now.
    """
    config = uvicorn.Config(app, log_level="warning", server_header=False, timeout_graceful_shutdown=GRACE)
    listener.listen()
    with suppress(KeyboardInterrupt):
        Server(config, on_start, on_stop, f"{listener.host}:{listener.port}").run(list(listener.sockets))
