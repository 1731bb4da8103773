"""Runs an ASGI application with uvicorn, from the start of listening to the end of the last running stream."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from math import ceil
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.types import ASGIApp

from llava.serve.http.addresses import url_of
from llava.serve.http.connections import ANSWERING, limited_protocol
from llava.serve.http.limits import BACKLOG, ConnectionLimits, fit_open_files
from llava.serve.http.listening import Listener

if TYPE_CHECKING:
    from llava.serve.engine import ChatEngine

logger = logging.getLogger(__name__)

Hook = Callable[[], Awaitable[None]]

GRACE = 60  # seconds for running streams to finish after a signal to stop
LAST = 1  # seconds for what is left after them


class Server(uvicorn.Server):
    """A uvicorn server that listens until its running streams have ended, so that clients can read that it stops.

    Has hooks: when it listens, and on a signal to stop.
    """

    def __init__(
        self, config: uvicorn.Config, on_start: Hook | None = None, on_stop: Hook | None = None, at: str = ""
    ) -> None:
        """
        Args:
            config: uvicorn's configuration.
            on_start: Awaited once the server listens.
            on_stop: Awaited after a signal to stop; the application should refuse new work from then on.
            at: The server's URL, for the log.
        """
        super().__init__(config)
        self.on_start, self.on_stop, self.at = on_start, on_stop, at

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts listening."""
        await super().startup(sockets)
        if self.started:
            logger.info("listening on %s", self.at)
            if self.on_start is not None:
                await self.on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Waits for the answers that were running at the signal, then stops listening.

        Later requests, and those whose body has not come, have a second from then on. All takes no longer than
        uvicorn's time for a graceful shutdown, and a second Ctrl-C ends it.
        """
        connections = list(self.server_state.connections)
        running: list[Any] = [each.cycle for each in connections if getattr(each, "state", None) == ANSWERING]
        end = time.monotonic() + (self.config.timeout_graceful_shutdown or GRACE)
        if self.on_stop is not None:
            await self.on_stop()
        while not self.force_exit and time.monotonic() < end:
            if all(cycle.response_complete or cycle.disconnected for cycle in running):
                break
            await asyncio.sleep(0.1)
        self.config.timeout_graceful_shutdown = 0 if self.force_exit or time.monotonic() >= end else LAST
        await super().shutdown(sockets)


async def refuse_more(engine: ChatEngine) -> None:
    """Makes an engine refuse new requests; does not wait for those that it answers."""
    asyncio.get_running_loop().run_in_executor(None, engine.close)


def server_config(app: ASGIApp, limits: ConnectionLimits) -> uvicorn.Config:
    """Builds uvicorn's configuration for a server that keeps its connections within limits."""
    return uvicorn.Config(
        app,
        http=limited_protocol(limits),  # type: ignore[arg-type]
        ws="none",
        log_level="warning",
        server_header=False,
        backlog=BACKLOG,
        # Longer than the protocol's own, which decide: uvicorn's 5 s are also httpx's, and a client that sends its next
        # request at the moment when the server closes the connection reads no reply.
        timeout_keep_alive=ceil(max(limits.header_timeout, limits.stall_timeout)) + 1,
        timeout_graceful_shutdown=GRACE,
    )


def serve(
    app: ASGIApp,
    listener: Listener,
    on_start: Hook | None = None,
    on_stop: Hook | None = None,
    limits: ConnectionLimits | None = None,
) -> None:
    """Runs an ASGI application until SIGINT or SIGTERM, then until its running streams have ended.

    Args:
        app: The application.
        listener: Where to listen.
        on_start: See `Server`.
        on_stop: See `Server`.
        limits: How many connections clients may open.

    Raises:
        ValueError: another program has started to listen there.
    """
    config = server_config(app, fit_open_files(limits or ConnectionLimits()))
    listener.listen()
    with suppress(KeyboardInterrupt):
        Server(config, on_start, on_stop, url_of(listener.host, listener.port)).run(list(listener.sockets))
