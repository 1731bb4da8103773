"""Requests to workers, answers back. Talks to registered workers only; knows neither flags nor who may ask."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import anyio
import httpx
from starlette.responses import Response

from llava.constants import WORKER_HEART_BEAT_INTERVAL
from llava.serve.http.auth import bearer_header
from llava.serve.http.failures import Failure, RequestError, explain
from llava.serve.workers import protocol
from llava.serve.workers.protocol import ErrorCode
from llava.serve.workers.registry import Registry

logger = logging.getLogger(__name__)

T = TypeVar("T")

REFUSED = (429, 503, 508)  # a worker that answers so has not begun; another one may
MAX_SHORT = 2**16  # bytes of what is neither an answer nor a request for one

MAX_EXPECTING = 256  # requests that wait for a worker to turn up
INSTANCE = "X-LLaVA-Instance"  # header of /health: tells a controller that an address is its own
HOPS = "X-LLaVA-Hops"  # header of a request: the controllers that have passed it on
MAX_HOPS = 8
PIECE = 2**16  # bytes


@dataclass(frozen=True)
class Timeouts:
    """How long a controller waits for its workers, in seconds."""

    connect: float = 5.0
    """For a connection."""
    status: float = 5.0
    """For a worker's status."""
    silence: float = 90.0
    """Between two frames of an answer; our workers repeat the last one more often than that."""
    begin: float = 4.0
    """For an answer to begin, before its worker is asked whether it is alive."""
    lull: float = 10.0
    """Between two frames, before the worker is asked."""
    alive: float = 4.0
    """For any reply to that question."""
    recognise: float = 1.0
    """For an address that registers to show whether it is this controller's own."""
    newcomers: float = WORKER_HEART_BEAT_INTERVAL + 1.0
    """After its own start for a worker of the model that is asked for: a restarted controller hears from its workers
    with their next heartbeat."""


class WorkerStopped(Exception):
    """A worker sends nothing, and does not say that it is alive."""


class Dispatcher:
    """Passes requests on to workers."""

    def __init__(
        self,
        registry: Registry,
        token: str | None = None,
        timeouts: Timeouts | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """
        Args:
            registry: The workers.
            token: The secret shared with the workers.
            timeouts: How long it waits.
            transport: Leads to the workers, where it is not the network.
        """
        self.registry, self.token, self.timeouts = registry, token, timeouts or Timeouts()
        self.instance = secrets.token_hex(16)
        """Names this controller to itself and to others."""
        self.expecting = 0
        """Requests that wait for a worker to turn up."""
        self._arrival = asyncio.Condition()
        self._started = time.monotonic()
        self.client = httpx.AsyncClient(
            transport=transport,
            trust_env=False,
            follow_redirects=False,
            headers={"Accept-Encoding": "identity"} | bearer_header(token),
            # Each request on a connection of its own: one kept for later may just be closed when it is used again.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        )

    async def register(self, request: protocol.RegisterRequest) -> None:
        """Registers a worker; asks for its status where it has not told.

        Raises:
            RequestError: the worker does not answer, or is this controller itself.
        """
        if await self._is_this(request.worker_name):
            message = f"{request.worker_name} is this controller itself; name a worker or another controller"
            raise RequestError(400, "own_address", message)
        status = request.worker_status or await self.status_of(request.worker_name)
        if status is None:
            raise RequestError(502, "worker_unreachable", f"the worker {request.worker_name} tells no status")
        self.registry.register(request.worker_name, status, request.check_heart_beat)
        async with self._arrival:
            self._arrival.notify_all()

    async def refresh(self) -> None:
        """Asks all workers for their status and drops those that give none."""
        workers = self.registry.workers()
        answers = await asyncio.gather(*map(self.status_of, workers))
        for (name, worker), status in zip(workers.items(), answers, strict=True):
            if self.registry.workers().get(name) is not worker:
                continue  # it has registered anew, or has gone, in the meantime
            if status is None:
                self.registry.remove(name, "it tells no status")
            else:
                self.registry.register(name, status, worker.check_heart_beat)

    async def status_of(self, name: str) -> protocol.WorkerStatus | None:
        """Asks a worker for its status; None if it gives none."""
        timeout = httpx.Timeout(self.timeouts.status, connect=self.timeouts.connect)
        try:
            async with self.client.stream("POST", f"{name}/worker_get_status", timeout=timeout) as reply:
                reply.raise_for_status()
                return protocol.parsed(protocol.WorkerStatus, await read_some(reply))
        except (httpx.HTTPError, ValueError) as error:
            logger.warning("no status from %s: %s", name, type(error).__name__)
            return None

    async def choose(self, model: str, excluded: Collection[str] = (), finishes: bool = True) -> str | None:
        """Returns the worker for a request; soon after the start, waits for one to turn up.

        Args:
            model: What it must serve.
            excluded: Workers that will not do.
            finishes: Whether the request passes through here, so that its end is seen.
        """
        name = self.registry.choose(model, excluded, finishes)
        left = self._started + self.timeouts.newcomers - time.monotonic()
        if name is not None or excluded or left <= 0 or self.expecting >= MAX_EXPECTING:
            return name
        self.expecting += 1
        try:
            async with self._arrival:
                arrival = self._arrival.wait_for(lambda: model in self.registry.models())
                await asyncio.wait_for(arrival, left)
        except asyncio.TimeoutError:
            return None
        finally:
            self.expecting -= 1
        return self.registry.choose(model, finishes=finishes)

    async def generate(self, body: bytes, hops: Sequence[str] = ()) -> Response:
        """Passes a request on to a worker, and its answer back.

        A worker that cannot be reached, refuses or is stopped has not begun with the answer, so that the next one is
        asked. One that goes away later has; the client is told, since the request may have been what the worker died
        of.

        Args:
            body: The request, as its client sent it.
            hops: The controllers that have passed it on.
        """
        if self.instance in hops or len(hops) >= MAX_HOPS:
            message = f"the request has passed {len(hops)} controllers; they are registered with each other in a circle"
            return protocol.error_reply(Failure(508, "loop_detected", message))
        try:
            model = protocol.parsed(protocol.ModelRequest, body).model
        except ValueError as error:
            return protocol.error_reply(explain(error))
        tried: list[str] = []
        refusal: Response | None = None
        while (name := await self.choose(model, tried)) is not None:
            tried.append(name)
            try:
                reply = await self._open(name, body, hops)
            except (httpx.HTTPError, WorkerStopped) as error:
                self.registry.finish(name)
                failure = self._unreachable(name, error)
                refusal = protocol.error_reply(failure, ErrorCode.UNREACHABLE)
                if not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | WorkerStopped):
                    break
                continue
            except BaseException:  # the client has gone
                self.registry.finish(name)
                raise
            if reply.status_code == 200:
                return protocol.FrameStream(self._frames(name, reply), partial(self._close, name, reply))
            refusal = await self._refusal(name, reply)
            if reply.status_code not in REFUSED:
                break
        return refusal or self._no_worker(model)

    async def close(self) -> None:
        """Closes the connections to the workers."""
        await self.client.aclose()

    async def _is_this(self, name: str) -> bool:
        """Whether an address leads to this controller; what does not answer, as a worker that just starts, does not."""

        async def ask() -> bool:
            async with self.client.stream("GET", f"{name}/health", timeout=self.timeouts.recognise) as reply:
                return reply.headers.get(INSTANCE) == self.instance

        try:
            return await asyncio.wait_for(ask(), self.timeouts.recognise)
        except (httpx.HTTPError, asyncio.TimeoutError):
            return False

    async def _is_alive(self, name: str) -> bool:
        """Whether a worker replies to a question; whatever it replies shows that it is not stopped."""

        async def ask() -> None:
            async with self.client.stream("POST", f"{name}/worker_get_status", timeout=self.timeouts.alive):
                pass

        try:
            await asyncio.wait_for(ask(), self.timeouts.alive)
        except (httpx.HTTPError, asyncio.TimeoutError):
            return False
        return True

    async def _while_alive(self, name: str, work: Awaitable[T], patience: float) -> T:
        """Awaits what a worker is to send, and asks whether it is alive whenever nothing has come for some time.

        Raises:
            WorkerStopped: it is not.
            Others: what `work` raises.
        """
        coming = asyncio.ensure_future(work)
        asking: asyncio.Future[bool] | None = None
        try:
            while not coming.done():
                await asyncio.wait({coming}, timeout=patience)
                if coming.done():
                    break
                asking = asyncio.ensure_future(self._is_alive(name))
                await asyncio.wait({coming, asking}, return_when=asyncio.FIRST_COMPLETED)
                if not coming.done() and not asking.result():
                    raise WorkerStopped
            return coming.result()
        finally:
            # Shielded, since a client's leaving cancels every await here, and the connection would stay open.
            with anyio.CancelScope(shield=True):
                for future in (coming, asking):
                    if future is not None and not future.done():
                        future.cancel()
                        await asyncio.gather(future, return_exceptions=True)

    async def _open(self, name: str, body: bytes, hops: Sequence[str]) -> httpx.Response:
        times = self.timeouts
        request = self.client.build_request(
            "POST",
            f"{name}/worker_generate_stream",
            content=pieces_of(body),  # so that the reply's request does not hold the body until the answer's end
            headers={
                "Content-Type": "application/json",
                "Content-Length": str(len(body)),
                HOPS: ",".join([*hops, self.instance]),
            },
            timeout=httpx.Timeout(times.silence, connect=times.connect, pool=None),
        )
        opening = asyncio.ensure_future(self.client.send(request, stream=True))
        try:
            return await self._while_alive(name, opening, times.begin)
        except BaseException:
            if opening.done() and not opening.cancelled() and opening.exception() is None:
                with anyio.CancelScope(shield=True):
                    await opening.result().aclose()  # it began just when the client went away
            raise

    async def _close(self, name: str, reply: httpx.Response) -> None:
        self.registry.finish(name)
        await reply.aclose()

    async def _frames(self, name: str, reply: httpx.Response) -> AsyncIterator[bytes]:
        """A worker's frames, and one more if it goes away amid them or sends something else, which is not passed on."""
        splitter, begun = protocol.FrameSplitter(), False
        try:
            chunks = reply.aiter_raw()
            while (data := await self._while_alive(name, anext(chunks, None), self.timeouts.lull)) is not None:
                for frame in splitter.push(data):
                    yield checked(frame)
                    begun = True
            for frame in splitter.finish():
                yield checked(frame)
                begun = True
            if not begun:
                raise ValueError("the reply is empty")
        except (httpx.HTTPError, WorkerStopped) as error:
            yield protocol.error_frame(self._unreachable(name, error), ErrorCode.UNREACHABLE)
        except ValueError as error:
            logger.error("%s answered with what is no frame: %s", name, error)
            yield protocol.error_frame(failed("what is no answer"))

    async def _refusal(self, name: str, reply: httpx.Response) -> Response:
        """What a client is told where a worker did not answer with a stream."""
        if reply.status_code in (401, 403):  # that is the controller's fault, not the client's
            await self._close(name, reply)
            message = "the worker does not accept the controller; start both with the same worker token"
            return protocol.error_reply(Failure(502, "worker_refused", message))
        try:
            body = checked((await read_some(reply)).rstrip(protocol.END))
        except (httpx.HTTPError, ValueError):
            logger.error("%s answered with HTTP %d and no frame", name, reply.status_code)
            return protocol.error_reply(failed(f"HTTP {reply.status_code}"))
        finally:
            await self._close(name, reply)
        headers = {key: reply.headers[key] for key in ("Retry-After",) if key in reply.headers}
        status = reply.status_code if reply.status_code >= 400 else 502
        return Response(body, status, headers, "application/octet-stream")

    def _unreachable(self, name: str, error: Exception) -> Failure:
        logger.warning("lost %s: %s", name, type(error).__name__)
        if isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout | httpx.PoolTimeout):
            message = f"the worker has said nothing for {self.timeouts.silence:g} s; try again"
            return Failure(504, "worker_timeout", message)
        self.registry.lose(name)
        return Failure(502, "worker_unreachable", "the worker has gone, or could not be reached; try again", 1)

    def _no_worker(self, model: str) -> Response:
        known = self.registry.models()
        if known:
            failure = Failure(404, "model_not_found", f"no worker serves {model!r}; served: {', '.join(known)}")
        else:
            failure = Failure(503, "no_worker", "no worker is registered; start one, or try again soon", 10)
        return protocol.error_reply(failure, ErrorCode.NO_WORKER)


async def pieces_of(body: bytes) -> AsyncIterator[bytes]:
    """Yields a body piece by piece."""
    for start in range(0, len(body), PIECE):
        yield body[start : start + PIECE]


def checked(frame: bytes) -> bytes:
    """Returns a frame with its zero byte.

    Raises:
        ValueError: it is none.
    """
    protocol.parsed(protocol.Frame, frame)
    return frame + protocol.END


def failed(answer: str) -> Failure:
    """What a client is told of a worker whose answer is none."""
    return Failure(502, "worker_failed", f"the worker answered with {answer}; the log of the worker may say why")


async def read_some(reply: httpx.Response) -> bytes:
    """Returns a short reply's body.

    Raises:
        ValueError: it is not short.
    """
    body = b""
    async for data in reply.aiter_raw():
        body += data
        if len(body) > MAX_SHORT:
            raise ValueError(f"the reply has more than {MAX_SHORT} bytes")
    return body
