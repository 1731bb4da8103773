"""Forwards each request to a registered worker, and the worker's answer to the client."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Collection, Sequence
from functools import partial

import httpx
from starlette.responses import Response

from llava.serve.engine.errors import EngineClosedError
from llava.serve.http.failures import Failure, RequestError, explain
from llava.serve.workers import frames, protocol
from llava.serve.workers.client import REFUSES_CONTROLLER, Timeouts, WorkerClient, WorkerStoppedError, read_short
from llava.serve.workers.frames import ErrorCode
from llava.serve.workers.registry import Registry

logger = logging.getLogger(__name__)

REFUSED = (429, 503, 508)  # a worker that replies so has not begun an answer; another one may
MAX_EXPECTING = 256  # requests that wait for a worker to register
MAX_HOPS = 8


class Dispatcher:
    """Forwards requests to workers."""

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
            token: The token shared with the workers.
            timeouts: How long to wait for them.
            transport: Replaces the network, in tests.
        """
        self.registry, self.timeouts = registry, timeouts or Timeouts()
        self.client = WorkerClient(token, self.timeouts, transport)
        self.stopping = False
        """Whether new requests for answers are refused."""
        self.expecting = 0
        """Requests that wait for a worker to register."""
        self._arrival = asyncio.Condition()
        self._started = time.monotonic()

    @property
    def instance(self) -> str:
        """The identifier of this controller."""
        return self.client.instance

    async def refuse_more(self) -> None:
        """Refuses new requests for answers; those that pass through are not touched."""
        self.stopping = True

    async def close(self) -> None:
        """Closes the connections to the workers."""
        await self.client.close()

    async def register(self, request: protocol.RegisterRequest) -> None:
        """Registers a worker.

        Asks for its status if the request has none, or if another worker has registered under its address: two that
        were started with one --worker-address both send heartbeats for it, but requests reach one of them.

        Raises:
            RequestError: the worker does not answer, or is this controller itself.
        """
        if await self.client.is_own_address(request.worker_name):
            message = f"{request.worker_name} is this controller itself; name a worker or another controller"
            raise RequestError(400, "own_address", message)
        name, status = request.worker_name, request.worker_status
        if status is None:
            status = await self.client.ask_status(name)
        elif self.registry.serves_others(name, status.model_names):
            own = await self.client.status_of(name)
            if own is not None and set(own.model_names) != set(status.model_names):
                given, served = (", ".join(names) or "no model" for names in (status.model_names, own.model_names))
                logger.warning("a worker with %s registered as %s, where %s is served", given, name, served)
                status = own
        self.registry.register(name, status, request.check_heart_beat)
        async with self._arrival:
            self._arrival.notify_all()

    async def refresh(self) -> None:
        """Asks all workers for their status and drops those that send none."""
        workers = self.registry.workers()
        answers = await asyncio.gather(*map(self.client.status_of, workers))
        for (name, worker), status in zip(workers.items(), answers, strict=True):
            if self.registry.workers().get(name) is not worker:
                continue  # it has registered again, or was dropped, in the meantime
            if status is None:
                self.registry.remove(name, "it sends no status")
            else:
                self.registry.register(name, status, worker.check_heart_beat)

    async def _refresh_worker(self, name: str) -> None:
        """Asks a worker for its status again, and keeps what is known of one that sends none."""
        worker, status = self.registry.workers().get(name), await self.client.status_of(name)
        if worker is not None and status is not None and self.registry.workers().get(name) is worker:
            self.registry.register(name, status, worker.check_heart_beat)

    async def choose(self, model: str, excluded: Collection[str] = (), finishes: bool = True) -> str | None:
        """Chooses the worker for a request; soon after the start, waits for one to register.

        Args:
            model: The model that it must serve.
            excluded: Workers not to choose.
            finishes: Whether the request passes through this controller, which then sees its end.
        """
        name = self.registry.choose(model, excluded, finishes)
        left = self._started + self.timeouts.registration_wait - time.monotonic()
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
        """Forwards a request to a worker, and its answer to the client.

        A worker that cannot be reached, refuses, is stopped or now serves another model has not begun the answer: the
        next one is tried. If one disconnects later, the client gets an error, since the request may have crashed it.

        Args:
            body: The request, as its client sent it.
            hops: The controllers that have forwarded it.
        """
        if self.stopping:
            return frames.error_reply(explain(EngineClosedError()))
        if self.instance in hops or len(hops) >= MAX_HOPS:
            message = f"the request has passed {len(hops)} controllers; they are registered with each other in a circle"
            return frames.error_reply(Failure(508, "loop_detected", message))
        try:
            model = protocol.parsed(protocol.ModelRequest, body).model
        except ValueError as error:
            return frames.error_reply(explain(error))
        tried: list[str] = []
        refusal: Response | None = None
        while (name := await self.choose(model, tried)) is not None:
            tried.append(name)
            try:
                reply = await self.client.open_answer(name, body, hops)
            except (httpx.HTTPError, WorkerStoppedError) as error:
                self.registry.finish(name)
                failure = self._unreachable(name, error)
                refusal = frames.error_reply(failure, ErrorCode.UNREACHABLE)
                if not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | WorkerStoppedError):
                    break
                continue
            except BaseException:  # the client has disconnected
                self.registry.finish(name)
                raise
            if reply.status_code == 200:
                return frames.FrameStream(self._frames(name, reply), partial(self._close, name, reply))
            refusal = await self._refusal(name, reply)
            if reply.status_code == 404:  # another model has taken its place
                await self._refresh_worker(name)
            elif reply.status_code not in REFUSED:
                break
        return refusal or self._no_worker(model)

    async def _close(self, name: str, reply: httpx.Response) -> None:
        self.registry.finish(name)
        await reply.aclose()

    async def _frames(self, name: str, reply: httpx.Response) -> AsyncIterator[bytes]:
        """Yields a worker's frames; the last one is an error if the worker disconnects or sends anything else."""
        begun = False
        try:
            async for frame in frames.read_frames(self.client.read_answer(name, reply)):
                yield _checked(frame)
                begun = True
            if not begun:
                raise ValueError("the reply is empty")
        except (httpx.HTTPError, WorkerStoppedError) as error:
            yield frames.error_frame(self._unreachable(name, error), ErrorCode.UNREACHABLE)
        except ValueError as error:
            logger.error("%s sent an invalid frame: %s", name, error)
            yield frames.error_frame(_invalid_answer("something other than an answer"))

    async def _refusal(self, name: str, reply: httpx.Response) -> Response:
        """Builds the reply to a client whose worker did not answer with a stream."""
        if reply.status_code in (401, 403):  # an error of the controller, not of the client
            await self._close(name, reply)
            return frames.error_reply(Failure(502, "worker_refused", f"the worker {REFUSES_CONTROLLER}"))
        try:
            body = _checked((await read_short(reply)).rstrip(frames.END))
        except (httpx.HTTPError, ValueError):
            logger.error("%s replied with HTTP %d and no frame", name, reply.status_code)
            return frames.error_reply(_invalid_answer(f"HTTP {reply.status_code}"))
        finally:
            await self._close(name, reply)
        headers = {key: reply.headers[key] for key in ("Retry-After",) if key in reply.headers}
        status = reply.status_code if reply.status_code >= 400 else 502
        return Response(body, status, headers, "application/octet-stream")

    def _unreachable(self, name: str, error: Exception) -> Failure:
        logger.warning("lost %s: %s", name, type(error).__name__)
        if isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout | httpx.PoolTimeout):
            message = f"the worker has sent nothing for {self.timeouts.silence:g} s; try again"
            return Failure(504, "worker_timeout", message)
        self.registry.lose(name)
        return Failure(502, "worker_unreachable", "the worker has gone, or could not be reached; try again", 1)

    def _no_worker(self, model: str) -> Response:
        known = self.registry.models()
        if model in known:
            message = f"the workers of {model!r} take no requests now, since they report speed 0; try again soon"
            failure = Failure(503, "no_worker", message, 10)
        elif known:
            asked = f"no worker serves {model!r}" if model else "the request names no model"
            failure = Failure(404, "model_not_found", f"{asked}; served: {', '.join(known)}")
        else:
            failure = Failure(503, "no_worker", "no worker is registered; start one, or try again soon", 10)
        return frames.error_reply(failure, ErrorCode.NO_WORKER)


def _checked(frame: bytes) -> bytes:
    """Checks a frame and adds its zero byte.

    Raises:
        ValueError: it is not a frame of LLaVA's protocol.
    """
    frames.check_frame(frame)
    return frame + frames.END


def _invalid_answer(answer: str) -> Failure:
    return Failure(502, "worker_failed", f"the worker answered with {answer}; the log of the worker may say why")
