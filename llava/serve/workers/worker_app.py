"""The worker as an ASGI application: one engine behind LLaVA's routes, with OpenAI's routes beside them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.images import read_base64
from llava.serve.decoding.pool import UnopenedImage
from llava.serve.engine import ChatEngine
from llava.serve.engine.answer_stream import AnswerStream
from llava.serve.engine.errors import GenerationError
from llava.serve.http.auth import RequireKey, SameOrigin
from llava.serve.http.bodies import BodyLimit, take_body
from llava.serve.http.disconnects import reply_unless_gone
from llava.serve.http.failures import RequestError, explain, explain_routing, shorten_value
from llava.serve.http.guards import MemoryGuard
from llava.serve.http.limits import RequestLimits
from llava.serve.http.metrics import Metrics
from llava.serve.http.replies import error_response
from llava.serve.openai.app import CountedAPI, add_openai_routes
from llava.serve.openai.chat import APISettings, qlip_of
from llava.serve.openai.replies import CompletionUsage
from llava.serve.workers import frames, protocol
from llava.serve.workers.auth import controller_tokens
from llava.serve.workers.protocol import ANSWERS, STATUS

SILENCE = 4.0  # seconds after which the last frame is repeated: LLaVA's web server gives up after 10
OTHER_METHODS = ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]


class ModelWorker:
    """Answers requests of LLaVA's protocol with an engine."""

    def __init__(
        self,
        engine: ChatEngine,
        model_names: Sequence[str],
        limits: RequestLimits | None = None,
        stream_interval: int = 1,
        silence: float = SILENCE,
    ) -> None:
        """
        Args:
            engine: The engine.
            model_names: The names of its model for clients.
            limits: What a request may hold.
            stream_interval: Fewest tokens from one frame to the next.
            silence: Seconds without new text after which the last frame is repeated.
        """
        self.engine, self.model_names, self.limits = engine, list(model_names), limits or RequestLimits()
        self.stream_interval, self.silence = stream_interval, silence

    def status(self) -> protocol.WorkerStatus:
        """Builds the status reported to the controller."""
        queue = self.engine.waiting + self.engine.running
        modes = dict.fromkeys(self.model_names, self.engine.conv_mode)
        return protocol.WorkerStatus(model_names=self.model_names, speed=1, queue_length=queue, conv_modes=modes)

    async def generate(self, body: bytes, metrics: Metrics) -> Response:
        """Answers a request with a stream of frames, or refuses it with one frame."""
        try:
            request: protocol.GenerateRequest = protocol.parsed(protocol.GenerateRequest, body)
            del body  # the parsed request holds the images once more
            self._check_model(request.model)
            self.limits.check(len(request.images or ()), len(request.prompt))
            answer = await self._submit(request)
        except Exception as error:  # the client gets a frame for any error, which is all that it can read
            failure = explain(error)
            metrics.failed(failure)
            return frames.error_reply(failure)
        reply = WorkerReply(request.prompt, answer, metrics)
        return frames.FrameStream(reply.frames(self.stream_interval, self.silence), reply.finish)

    def _check_model(self, name: str) -> None:
        """Raises RequestError if a request names a model that this worker does not serve, as after a restart.

        LLaVA's clients name it in every request; one without a name is answered.
        """
        if name and name not in self.model_names:
            served = ", ".join(self.model_names)
            raise RequestError(404, "model_not_found", f"no model {shorten_value(name)} here; this worker has {served}")

    async def _submit(self, request: protocol.GenerateRequest) -> AnswerStream:
        sampling, options = request.sampling(), qlip_of(request.qlip)
        prompt = request.prompt.replace(DEFAULT_IMAGE_TOKEN, self.engine.image_token)
        limits = self.limits.image
        images = [UnopenedImage(partial(read_base64, text, limits), limits) for text in request.images or ()]
        return await self.engine.asubmit(prompt, images, sampling, options, shorten=True)


@dataclass
class WorkerReply:
    """An answer that is being streamed to a client of LLaVA's protocol."""

    prompt: str
    answer: AnswerStream
    metrics: Metrics
    failed: bool = False

    async def frames(self, interval: int, silence: float) -> AsyncIterator[bytes]:
        """Yields the answer's frames; the last one holds the reason of its end and its usage.

        Args:
            interval: Fewest tokens from one frame to the next.
            silence: Seconds without new text after which the last frame is repeated.
        """
        text, sent = self.prompt, 0
        try:
            async for piece in with_keepalives(aiter(self.answer), silence):
                text += piece
                if not piece or self.answer.row.generated - sent >= interval:
                    sent = self.answer.row.generated
                    yield frames.frame(text)
        except (GenerationError, MemoryError) as error:
            self.failed = True
            failure = explain(error)
            self.metrics.failed(failure)
            yield frames.error_frame(failure)
            return
        usage = CompletionUsage.of(self.answer).model_dump()
        yield frames.frame(text, {"finish_reason": self.answer.finish_reason, "usage": usage})

    async def finish(self) -> None:
        """Counts the answer; cancels it if it has not ended, since its client reads no more."""
        reason = self.answer.finish_reason or ("failed" if self.failed else "cancelled")
        self.answer.cancel()
        self.metrics.answered(self.answer, reason)


async def with_keepalives(pieces: AsyncIterator[str], seconds: float) -> AsyncIterator[str]:
    """Yields the pieces of a text, and an empty one whenever none has come for some seconds."""
    coming: asyncio.Future[str | None] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(pieces, None))
            await asyncio.wait([coming], timeout=seconds)
            if not coming.done():
                yield ""
                continue
            piece, coming = coming.result(), None
            if piece is None:
                return
            yield piece
    finally:
        if coming is not None:
            coming.cancel()


def create_app(worker: ModelWorker, keys: Sequence[str] = (), token: str | None = None) -> FastAPI:
    """Builds the worker's application.

    Args:
        worker: The worker; the caller closes its engine.
        keys: API keys of clients.
        token: The token shared with the controller, accepted instead of a key on the routes that a controller calls.
    """
    app = CountedAPI(docs_url=None, redoc_url=None, openapi_url=None)  # OpenAI's routes include these paths
    limits = worker.limits
    # These check the requests of all routes, OpenAI's included; the one added last runs first.
    app.add_middleware(BodyLimit, max_body=limits.max_body, timeout=limits.body_timeout)
    app.add_middleware(RequireKey, keys=keys, path_tokens=controller_tokens(token))
    app.add_middleware(SameOrigin)
    app.add_middleware(MemoryGuard)

    @app.post(ANSWERS)
    async def worker_generate_stream(request: Request) -> Response:
        work = worker.generate(await take_body(request), metrics)
        return await reply_unless_gone(request.receive, work)

    @app.post(STATUS)
    async def worker_get_status() -> protocol.WorkerStatus:
        return worker.status()

    def refuse(request: Request, status: int, headers: Mapping[str, str] | None = None) -> Response:
        failure = explain_routing(status, request.method, "")
        metrics.failed(failure)
        return error_response(failure, headers=headers)

    async def refuse_method(request: Request) -> Response:
        return refuse(request, 405, {"Allow": "POST"})

    @app.exception_handler(HTTPException)
    async def refuse_path(request: Request, error: HTTPException) -> Response:
        return refuse(request, error.status_code, error.headers)  # "*", or a whole URL, which no application takes

    for path in (ANSWERS, STATUS):  # OpenAI's application takes every path that no route here takes in full
        app.api_route(path, methods=OTHER_METHODS)(refuse_method)
    settings = APISettings(tuple(worker.model_names), limits, tuple(keys))
    metrics = app.state.metrics = add_openai_routes(app, worker.engine, settings, checked=True)
    return app
