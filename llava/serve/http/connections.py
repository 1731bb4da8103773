"""Connections of a server: how many there may be, and how long a client may keep one waiting."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from llava.serve.http.failures import Failure

try:
    import resource
except ImportError:  # Windows has no such limits
    resource = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

BACKLOG = 512  # connections that are accepted at once, before the first of them is looked at
OTHER_FILES = 256  # a server's own: libraries, checkpoints, pipes
LINGER = 1.0  # seconds for which a refused connection is kept, so that its client can read why
MAX_LINGERING = 64
# Bytes that the system keeps for a client: with its usual megabytes, a slow one seems to read nothing.
SEND_BUFFER = 2**17

NO_REQUEST, BODY_MISSING, ANSWERING = range(3)  # what a connection waits for; the first two are the client's to send


@dataclass(frozen=True)
class ConnectionLimits:
    """What the clients of a server may take of it."""

    most: int = 1000
    """Connections in all."""
    header_timeout: float = 20.0
    """Seconds for a request's headers, from the opening of the connection or from the end of the last reply."""
    stall_timeout: float = 60.0
    """Seconds for which a client may read nothing of its reply, or send on a body whose reply has ended."""

    def __post_init__(self) -> None:
        for name in ("most", "header_timeout", "stall_timeout"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    @property
    def most_of_client(self) -> int:
        """Connections of one address that is not loopback.

        A quarter leaves room for others even where three clients misbehave. Loopback is where a proxy on this machine
        comes from, with the connections of all its clients.
        """
        return max(1, self.most // 4)

    def protocol(self) -> Callable[..., asyncio.Protocol]:
        """Makes the HTTP protocol that keeps a server within these limits, for uvicorn's `http`."""
        return partial(LimitedProtocol, table=ConnectionTable(self))


def fit_open_files(limits: ConnectionLimits) -> ConnectionLimits:
    """Raises the process's limit on open files as far as needed; where it stays lower, allows fewer connections."""
    if resource is None:
        return limits
    # A controller has a connection to a worker for each of its clients'.
    needed = 2 * limits.most + BACKLOG + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        except (OSError, ValueError):  # macOS has a further limit of its own
            pass
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return limits
    most = max(16, (soft - BACKLOG - OTHER_FILES) // 2)
    logger.warning("the limit on open files, %d, allows %d connections; raise it by ulimit -n %d", soft, most, needed)
    return replace(limits, most=most)


def client_of(address: tuple[str, int] | None) -> str:
    """Names the client behind a peer's address: itself for IPv4, its network of 64 bits for IPv6."""
    try:
        ip = ipaddress.ip_address((address or ("",))[0].partition("%")[0])
    except ValueError:
        return ""  # a socket of Unix, which is this machine's
    if ip.is_loopback:
        return ""
    return str(ip) if ip.version == 4 else str(ipaddress.ip_network((ip, 64), strict=False))


class ConnectionTable:
    """The open connections, by client. The empty name is this machine's own."""

    def __init__(self, limits: ConnectionLimits) -> None:
        """
        Args:
            limits: How many there may be.
        """
        self.limits = limits
        self.count = self.lingering = 0
        self._clients: dict[str, tuple[dict[LimitedProtocol, None], ...]] = {}

    def admit(self, connection: LimitedProtocol, client: str) -> bool:
        """Adds a connection; where there are too many, closes one that waits for its client, if there is any.

        The longest waiting is closed first, one that has sent no request before one that owes its body.
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
        """Notes that a connection waits for something else now."""
        stages = self._clients[client]
        del stages[old][connection]
        stages[new][connection] = None

    def remove(self, connection: LimitedProtocol, client: str, stage: int) -> None:
        """Forgets a connection."""
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
    """uvicorn's HTTP/1.1, whose clients may keep it waiting for so long only."""

    def __init__(self, *args: Any, table: ConnectionTable, **options: Any) -> None:
        """
        Args:
            args: uvicorn's, like `options`.
            table: The server's connections.
        """
        super().__init__(*args, **options)
        self.table, self.limits = table, table.limits
        self.state: int | None = None
        """What is waited for; None where the connection is not in the table."""
        self.client_name = ""
        self._refused = False
        self._wait: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._unsent = 0

    # asyncio's calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes a connection, or refuses it."""
        super().connection_made(transport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self.client_name = client_of(self.client)
        if self.table.admit(self, self.client_name):
            self.state = NO_REQUEST
            self._wait = self.loop.call_later(self.limits.header_timeout, self._give_up)
        else:
            self._refuse()

    def data_received(self, data: bytes) -> None:
        """Takes what the client sends."""
        if self._refused:
            return
        super().data_received(data)
        self._note()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the connection."""
        self._cancel_timers()
        self._leave()
        if self._refused:
            self._refused = False
            self.table.lingering -= 1
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Watches a client that does not read."""
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        """Ends the watch."""
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    # uvicorn's call

    def on_response_complete(self) -> None:
        """Waits for the next request."""
        super().on_response_complete()
        self._note()

    def drop(self) -> None:
        """Closes the connection at once, in favour of another one."""
        self._leave()
        self.transport.abort()

    def _note(self) -> None:
        """Keeps the table and the timer as the state of the exchange has them."""
        if self.state is None:
            return
        state = self._waits_for()
        if state == self.state:
            return
        self.table.move(self, self.client_name, self.state, state)
        self.state = state
        if state == NO_REQUEST:
            discarding = self.conn.their_state is h11.SEND_BODY  # of a request that is answered already
            timeout = self.limits.stall_timeout if discarding else self.limits.header_timeout
            self._wait = self.loop.call_later(timeout, self._give_up)
        elif self._wait is not None:
            self._wait.cancel()
            self._wait = None

    def _waits_for(self) -> int:
        if self.conn.our_state not in (h11.SEND_RESPONSE, h11.SEND_BODY):
            return NO_REQUEST
        return BODY_MISSING if self.conn.their_state is h11.SEND_BODY else ANSWERING

    def _give_up(self) -> None:
        """Closes a connection whose client has sent no request in time."""
        self._wait = None
        if not self.transport.is_closing():
            begun = self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]
            if begun and not self.transport.get_write_buffer_size():
                said = f"the request's headers took longer than {self.limits.header_timeout:g} seconds"
                self.transport.write(raw_reply(Failure(408, "request_timeout", said)))
            self.transport.close()
        self._watch_reader()  # what was written before may never be read

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

    def _refuse(self) -> None:
        self._refused = True
        self.table.lingering += 1
        failure = Failure(503, "too_many_connections", "this server has too many connections; try again", 1)
        self.transport.write(raw_reply(failure))
        if self.table.lingering > MAX_LINGERING:
            self.transport.close()
            return
        # Closed at once, with the client's request unread, the connection would be reset and the reply lost.
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._wait = self.loop.call_later(LINGER, self.transport.abort)

    def _leave(self) -> None:
        if self.state is not None:
            self.table.remove(self, self.client_name, self.state)
            self.state = None

    def _cancel_timers(self) -> None:
        for timer in (self._wait, self._stall):
            if timer is not None:
                timer.cancel()
        self._wait = self._stall = None


def raw_reply(failure: Failure) -> bytes:
    """Formats a refusal as the bytes of a reply after which the connection ends."""
    body = json.dumps(failure.body()).encode()
    headers = {"Content-Type": "application/json", "Content-Length": len(body), "Connection": "close"}
    lines = [f"{name}: {value}" for name, value in (headers | failure.headers).items()]
    reason = {408: "Request Timeout", 503: "Service Unavailable"}[failure.status]
    return "\r\n".join([f"HTTP/1.1 {failure.status} {reason}", *lines, "", ""]).encode() + body
