"""Limited connections for uvicorn: how many clients may open, and for how long they may leave one idle."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from llava.serve.http.failures import Failure
from llava.serve.http.limits import ConnectionLimits
from llava.serve.http.replies import raw_reply

LINGER = 1.0  # seconds that a connection stays open after a refusal, so that its client can read the reason
MAX_LINGERING = 64
# Bytes that the system buffers for a client: with the usual megabytes, a slow client seems to read nothing.
SEND_BUFFER = 2**17
MALFORMED = (
    "the request is not valid HTTP/1.1: it needs one Host, at most one Content-Length and an ASCII path, and a"
    " request's headers may take 64 KiB"
)

NO_REQUEST, BODY_MISSING, ANSWERING = range(3)  # what a connection waits for; the client sends the first two


def limited_protocol(limits: ConnectionLimits) -> Callable[..., asyncio.Protocol]:
    """Builds the HTTP protocol, for uvicorn's `http`, of a server that keeps its connections within `limits`."""
    return partial(LimitedProtocol, table=ConnectionTable(limits))


def client_of(address: tuple[str, int] | None) -> str:
    """Names the client of a peer's address: the address itself for IPv4, its /64 network for IPv6."""
    try:
        ip = ipaddress.ip_address((address or ("",))[0].partition("%")[0])
    except ValueError:
        return ""  # a Unix socket: this machine
    if ip.is_loopback:
        return ""
    return str(ip) if ip.version == 4 else str(ipaddress.ip_network((ip, 64), strict=False))


class ConnectionTable:
    """The open connections of each client; the empty name is this machine."""

    def __init__(self, limits: ConnectionLimits) -> None:
        """
        Args:
            limits: How many there may be.
        """
        self.limits = limits
        self.count = self.lingering = 0
        self._clients: dict[str, tuple[dict[LimitedProtocol, None], ...]] = {}

    def admit(self, connection: LimitedProtocol, client: str) -> bool:
        """Adds a connection; if there are too many, closes one that waits for its client.

        The one that has waited longest is closed first; those without a request before those with half a body.

        Returns:
            False if all other connections are being answered, so that the new one must be refused.
        """
        own = self._clients.get(client)
        if client and own and _size(own) >= self.limits.most_of_client:
            if not _close_one(own):
                return False
        elif self.count >= self.limits.most and not any(
            map(_close_one, sorted(self._clients.values(), key=_size)[::-1])
        ):
            return False
        # Closing one may have emptied the client's entry.
        self._clients.setdefault(client, ({}, {}, {}))[NO_REQUEST][connection] = None
        self.count += 1
        return True

    def move(self, connection: LimitedProtocol, client: str, old: int, new: int) -> None:
        """Records that a connection now waits for something else."""
        stages = self._clients[client]
        del stages[old][connection]
        stages[new][connection] = None

    def remove(self, connection: LimitedProtocol, client: str, stage: int) -> None:
        """Removes a connection."""
        stages = self._clients[client]
        del stages[stage][connection]
        self.count -= 1
        if not _size(stages):
            del self._clients[client]


def _size(stages: tuple[dict[LimitedProtocol, None], ...]) -> int:
    return sum(map(len, stages))


def _close_one(stages: tuple[dict[LimitedProtocol, None], ...]) -> bool:
    for stage in (NO_REQUEST, BODY_MISSING):
        for connection in stages[stage]:
            connection.drop()
            return True
    return False


class LimitedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with limits on idle and stalled connections."""

    def __init__(self, *args: Any, table: ConnectionTable, **options: Any) -> None:
        """
        Args:
            args: uvicorn's, like `options`.
            table: The server's connections.
        """
        super().__init__(*args, **options)
        self.table, self.limits = table, table.limits
        self.state: int | None = None
        """What the connection waits for; None while it is not in the table."""
        self.client_name = ""
        self._ended = False
        """Whether the last reply has been sent, while the connection lingers."""
        self._wait: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._unsent = 0

    # Called by asyncio

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accepts a connection, or refuses it."""
        super().connection_made(transport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self.client_name = client_of(self.client)
        if self.table.admit(self, self.client_name):
            self.state = NO_REQUEST
            self._wait = self.loop.call_later(self.limits.header_timeout, self._give_up)
        else:
            message = "this server has too many connections; try again"
            self._end_with(Failure(503, "too_many_connections", message, 1))

    def data_received(self, data: bytes) -> None:
        """Handles data from the client."""
        if self._ended:
            return
        super().data_received(data)
        self._update()

    def connection_lost(self, exc: Exception | None) -> None:
        """Removes the connection from the table."""
        self._cancel_timers()
        self._leave()
        if self._ended:
            self._ended = False
            self.table.lingering -= 1
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Starts a timer for a client that does not read."""
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        """Stops that timer."""
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    # Called by uvicorn

    def on_response_complete(self) -> None:
        """Starts to wait for the next request."""
        super().on_response_complete()
        self._update()

    def send_400_response(self, msg: str) -> None:
        """Answers bytes that are no HTTP with the documented error; closes the connection.

        Args:
            msg: uvicorn's text, which says the same of every fault.
        """
        begun = self.conn.our_state is h11.SEND_BODY
        if self.cycle is not None and not self.cycle.response_complete:  # the application may not reply any more
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if begun:
            self.transport.close()
            return
        self._leave()
        self._cancel_timers()
        self._end_with(Failure(400, "invalid_request", MALFORMED))

    def drop(self) -> None:
        """Closes the connection at once, to make room for another one."""
        self._leave()
        self.transport.abort()

    def _update(self) -> None:
        """Updates the table and the timer to the state of the exchange."""
        if self.state is None:
            return
        state = self._stage()
        if state == self.state:
            return
        self.table.move(self, self.client_name, self.state, state)
        self.state = state
        if state == NO_REQUEST:
            discarding = self.conn.their_state is h11.SEND_BODY  # the rest of a request that has been answered
            timeout = self.limits.stall_timeout if discarding else self.limits.header_timeout
            self._wait = self.loop.call_later(timeout, self._give_up)
        elif self._wait is not None:
            self._wait.cancel()
            self._wait = None

    def _stage(self) -> int:
        if self.conn.our_state not in (h11.SEND_RESPONSE, h11.SEND_BODY):
            return NO_REQUEST
        return BODY_MISSING if self.conn.their_state is h11.SEND_BODY else ANSWERING

    def _give_up(self) -> None:
        """Closes a connection whose client has sent no request in time."""
        self._wait = None
        if not self.transport.is_closing():
            begun = self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]
            if begun and not self.transport.get_write_buffer_size():
                message = f"the request's headers took longer than {self.limits.header_timeout:g} seconds"
                self.transport.write(raw_reply(Failure(408, "request_timeout", message)))
        self._close()

    def _close(self) -> None:
        self.transport.close()
        self._watch_reader()  # the client may never read what was written before

    def _watch_reader(self) -> None:
        self._unsent = self.transport.get_write_buffer_size()
        if self._stall is None:
            self._stall = self.loop.call_later(self.limits.stall_timeout, self._check_reader)

    def _check_reader(self) -> None:
        self._stall = None
        if 0 < self.transport.get_write_buffer_size() < self._unsent:
            self._watch_reader()
        else:
            self.transport.abort()

    def _end_with(self, failure: Failure) -> None:
        """Sends a last reply; reads nothing more, and closes the connection soon."""
        self._ended = True
        self.table.lingering += 1
        self.transport.write(raw_reply(failure))
        if self.table.lingering > MAX_LINGERING:
            self._close()
            return
        # Closed at once, with data of the client unread, the connection would be reset and the reply lost.
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._wait = self.loop.call_later(LINGER, self._close)

    def _leave(self) -> None:
        if self.state is not None:
            self.table.remove(self, self.client_name, self.state)
            self.state = None

    def _cancel_timers(self) -> None:
        for timer in (self._wait, self._stall):
            if timer is not None:
                timer.cancel()
        self._wait = self._stall = None
