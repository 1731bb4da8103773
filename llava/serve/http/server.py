"""What every server here shares: limits on requests, API keys, flags, an orderly end. Knows no protocol, no model."""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava.serve.engine.errors import ran_out_of_memory
from llava.serve.http.connections import BACKLOG, ConnectionLimits, fit_open_files
from llava.serve.http.failures import error_response, explain
from llava.serve.http.listening import Listener

logger = logging.getLogger(__name__)

Hook = Callable[[], Awaitable[None]]

GRACE = 60  # seconds that running streams have to finish when a server is told to stop


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
