"""The controller's HTTP client for its workers: their status, whether they are alive, and their answers."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import anyio
import httpx

from llava.constants import WORKER_HEART_BEAT_INTERVAL
from llava.serve.http.auth import bearer_header
from llava.serve.http.failures import RequestError
from llava.serve.workers.protocol import ANSWERS, STATUS, WorkerStatus, parsed
from llava.tls import tls_context

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_SHORT = 2**16  # bytes of a message that is neither an answer nor a request for one
INSTANCE = "X-LLaVA-Instance"  # header of /health: tells a controller that an address is its own
HOPS = "X-LLaVA-Hops"  # header of a request: the controllers that have forwarded it
PIECE = 2**16  # bytes
REFUSES_CONTROLLER = "does not accept the controller; start both with the same worker token"


@dataclass(frozen=True)
class Timeouts:
    """How long a controller waits for its workers, in seconds."""

    connect: float = 5.0
    """Time for a connection to open."""
    status: float = 5.0
    """Time for a worker to report its status."""
    silence: float = 90.0
    """Longest time between two frames of an answer; our workers repeat the last one more often than that."""
    first_frame: float = 4.0
    """Time for an answer to begin, before the controller asks its worker whether it is alive."""
    frame_gap: float = 10.0
    """Time between two frames, before the controller asks."""
    liveness: float = 4.0
    """Time for any reply to that question."""
    self_check: float = 1.0
    """Time for an address that registers to show whether it is this controller's own."""
    registration_wait: float = WORKER_HEART_BEAT_INTERVAL + 1.0
    """Time after the controller's start for a worker of the requested model to register: a restarted controller
    hears from its workers with their next heartbeat."""


class WorkerStoppedError(Exception):
    """A worker sends nothing, not even a reply to the question whether it is alive."""


class WorkerClient:
    """Sends a controller's requests to workers."""

    def __init__(
        self,
        token: str | None = None,
        timeouts: Timeouts | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """
        Args:
            token: The token shared with the workers.
            timeouts: How long to wait.
            transport: Replaces the network, in tests.
        """
        self.timeouts = timeouts or Timeouts()
        self.instance = secrets.token_hex(16)
        """Identifies this controller to itself and to others."""
        self._client = httpx.AsyncClient(
            transport=transport,
            verify=tls_context(),
            trust_env=False,
            follow_redirects=False,
            headers={"Accept-Encoding": "identity"} | bearer_header(token),
            # One connection for each request: a worker may close a kept one at the moment when it is used again.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        )

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def ask_status(self, name: str) -> WorkerStatus:
        """Asks a worker for its status.

        Raises:
            RequestError: it cannot be reached, refuses, or sends something else.
        """
        timeout = httpx.Timeout(self.timeouts.status, connect=self.timeouts.connect)
        try:
            async with self._client.stream("POST", f"{name}{STATUS}", timeout=timeout) as reply:
                reply.raise_for_status()
                return parsed(WorkerStatus, await read_short(reply))
        except (httpx.HTTPError, ValueError) as error:
            raise _explain_missing_status(name, error) from error

    async def status_of(self, name: str) -> WorkerStatus | None:
        """Asks a worker for its status; None, and a warning in the log, if it sends none."""
        try:
            return await self.ask_status(name)
        except RequestError as error:
            logger.warning("%s", error)
            return None

    async def is_own_address(self, name: str) -> bool:
        """Whether an address leads to this controller; one that does not answer (a worker that starts) does not.

        It gets no token: it is asked before it is known as a worker.
        """
        asked = self._client.build_request("GET", f"{name}/health", timeout=self.timeouts.self_check)
        asked.headers.pop("Authorization", None)

        async def ask() -> bool:
            reply = await self._client.send(asked, stream=True)
            try:
                return reply.headers.get(INSTANCE) == self.instance
            finally:
                await reply.aclose()

        try:
            return await asyncio.wait_for(ask(), self.timeouts.self_check)
        except (httpx.HTTPError, asyncio.TimeoutError):
            return False

    async def is_alive(self, name: str) -> bool:
        """Whether a worker replies to a request for its status, whatever the reply is."""

        async def ask() -> None:
            async with self._client.stream("POST", f"{name}{STATUS}", timeout=self.timeouts.liveness):
                pass

        try:
            await asyncio.wait_for(ask(), self.timeouts.liveness)
        except (httpx.HTTPError, asyncio.TimeoutError):
            return False
        return True

    async def open_answer(self, name: str, body: bytes, hops: Sequence[str]) -> httpx.Response:
        """Sends a request for an answer; waits for the head of the reply, whose body is still to be read.

        Args:
            name: The worker.
            body: The request, as its client sent it.
            hops: The controllers that have forwarded it.

        Raises:
            WorkerStoppedError: the worker is not alive.
            httpx.HTTPError: it cannot be reached, or has hung up.
        """
        times = self.timeouts
        request = self._client.build_request(
            "POST",
            f"{name}{ANSWERS}",
            content=_pieces(body),  # so that the reply's request does not hold the body until the answer's end
            headers={
                "Content-Type": "application/json",
                "Content-Length": str(len(body)),
                HOPS: ",".join([*hops, self.instance]),
            },
            timeout=httpx.Timeout(times.silence, connect=times.connect, pool=None),
        )
        opening = asyncio.ensure_future(self._client.send(request, stream=True))
        try:
            return await self._while_alive(name, opening, times.first_frame)
        except BaseException:
            if opening.done() and not opening.cancelled() and opening.exception() is None:
                with anyio.CancelScope(shield=True):
                    await opening.result().aclose()  # it began at the moment when the client disconnected
            raise

    async def read_answer(self, name: str, reply: httpx.Response) -> AsyncIterator[bytes]:
        """Yields the body of a worker's answer as it comes.

        Raises:
            WorkerStoppedError: the worker is not alive any more.
            httpx.HTTPError: it has hung up.
        """
        chunks = reply.aiter_raw()
        while (data := await self._while_alive(name, anext(chunks, None), self.timeouts.frame_gap)) is not None:
            yield data

    async def _while_alive(self, name: str, work: Awaitable[T], interval: float) -> T:
        """Awaits data from a worker; whenever none has come for `interval` seconds, asks whether the worker is alive.

        Raises:
            WorkerStoppedError: it is not.
        """
        coming = asyncio.ensure_future(work)
        asking: asyncio.Future[bool] | None = None
        try:
            while not coming.done():
                await asyncio.wait({coming}, timeout=interval)
                if coming.done():
                    break
                asking = asyncio.ensure_future(self.is_alive(name))
                await asyncio.wait({coming, asking}, return_when=asyncio.FIRST_COMPLETED)
                if not coming.done() and not asking.result():
                    raise WorkerStoppedError
            return coming.result()
        finally:
            # Shielded, since a client's disconnect cancels every await here, and the connection would stay open.
            with anyio.CancelScope(shield=True):
                for future in (coming, asking):
                    if future is not None and not future.done():
                        future.cancel()
                        await asyncio.gather(future, return_exceptions=True)


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), PIECE):
        yield body[start : start + PIECE]


def _explain_missing_status(name: str, error: Exception) -> RequestError:
    """Explains why a worker's status is unknown, to whoever registered it."""
    if isinstance(error, httpx.HTTPStatusError):
        status = error.response.status_code
        if status in (401, 403):
            return RequestError(502, "worker_refused", f"the worker {name} {REFUSES_CONTROLLER}")
        why = f"it replies HTTP {status} to POST {STATUS}"
    elif isinstance(error, httpx.TimeoutException):
        why = "it does not reply in time"
    elif isinstance(error, httpx.HTTPError):
        why = f"it cannot be reached ({type(error).__name__})"
    else:
        why = "its reply is not a worker's status"
    return RequestError(502, "worker_unreachable", f"the worker {name} sends no status: {why}")


async def read_short(reply: httpx.Response) -> bytes:
    """Reads the body of a short reply.

    Raises:
        ValueError: it has more than `MAX_SHORT` bytes.
    """
    body = b""
    async for data in reply.aiter_raw():
        body += data
        if len(body) > MAX_SHORT:
            raise ValueError(f"the reply has more than {MAX_SHORT} bytes")
    return body
