"""The worker: `python -m llava.serve.model_worker`. One engine behind LLaVA's routes, and OpenAI's beside them.

It registers with a controller and keeps that up; clients may also come to it directly. What a request asks for is told
in `wire`, how an answer comes about is the engine's matter.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from fastapi import FastAPI, Request
from starlette.responses import Response

from llava.command import OneLineParser, integer, run_command
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.images import read_base64
from llava.mm_utils import get_model_name_from_path
from llava.serve.decoding.pool import UnopenedImage
from llava.serve.engine import ChatEngine
from llava.serve.engine.answer_stream import Answer
from llava.serve.engine.errors import GenerationError
from llava.serve.engine.params import EngineLimits
from llava.serve.http.auth import RequireKey, SameOrigin
from llava.serve.http.bodies import BodyLimit, take_body
from llava.serve.http.connections import ConnectionLimits
from llava.serve.http.disconnects import reply_unless_gone
from llava.serve.http.failures import explain
from llava.serve.http.flags import add_server_flags, api_keys, request_limits
from llava.serve.http.limits import RequestLimits
from llava.serve.http.listening import Listener, take_address
from llava.serve.http.metrics import Metrics
from llava.serve.http.server import MemoryGuard, log_to_console, serve
from llava.serve.loading import add_model_flags, load_engine
from llava.serve.openai.app import add_openai_routes
from llava.serve.openai.chat import APISettings, qlip_of
from llava.serve.openai.replies import CompletionUsage
from llava.serve.workers import protocol
from llava.serve.workers.auth import add_token_flag, host_of, is_loopback, machine_address, warn_of_open_port
from llava.serve.workers.heartbeat import Registration
from llava.utils import demo_model_path

PORT = 21002
CONTROLLER = "http://localhost:21001"
SILENCE = 4.0  # seconds after which the last frame is repeated: LLaVA's web server gives up after 10


class ModelWorker:
    """Answers LLaVA's requests with an engine."""

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
            model_names: What clients call its model.
            limits: What a request may hold.
            stream_interval: Fewest tokens from one frame to the next.
            silence: Seconds without news after which the last frame is repeated.
        """
        self.engine, self.model_names, self.limits = engine, list(model_names), limits or RequestLimits()
        self.stream_interval, self.silence = stream_interval, silence

    def status(self) -> protocol.WorkerStatus:
        """Returns what the controller wants to know."""
        queue = self.engine.waiting + self.engine.running
        return protocol.WorkerStatus(model_names=self.model_names, speed=1, queue_length=queue)

    async def generate(self, body: bytes, metrics: Metrics) -> Response:
        """Returns the answer to a request as a stream of frames, or one frame that says why there is none."""
        try:
            request: protocol.GenerateRequest = protocol.parsed(protocol.GenerateRequest, body)
            del body  # the pictures are in memory twice as it is
            self.limits.check(len(request.images or ()), len(request.prompt))
            answer = await self._submit(request)
        except Exception as error:  # whatever it is, the client is told in a form that it can read
            failure = explain(error)
            metrics.failed(failure)
            return protocol.error_reply(failure)
        exchange = Exchange(request.prompt, answer, metrics)
        return protocol.FrameStream(exchange.frames(self.stream_interval, self.silence), exchange.finish)

    async def _submit(self, request: protocol.GenerateRequest) -> Answer:
        sampling, options = request.sampling(), qlip_of(request.qlip)
        self.engine.vision.settings(options)  # checked before any picture is decoded
        prompt = request.prompt.replace(DEFAULT_IMAGE_TOKEN, self.engine.image_token)
        limits = self.limits.image
        images = [UnopenedImage(partial(read_base64, text, limits), limits) for text in request.images or ()]
        return await self.engine.asubmit(prompt, images, sampling, options, shorten=True)


@dataclass
class Exchange:
    """An answer on its way to a client of LLaVA's."""

    prompt: str
    answer: Answer
    metrics: Metrics
    failed: bool = False

    async def frames(self, interval: int, silence: float) -> AsyncIterator[bytes]:
        """Yields the answer's frames; the last one tells why it ended and what it cost.

        Args:
            interval: Fewest tokens from one frame to the next.
            silence: Seconds without news after which the last frame is repeated.
        """
        text, sent = self.prompt, 0
        try:
            async for piece in with_pauses(aiter(self.answer), silence):
                text += piece
                if not piece or self.answer.row.generated - sent >= interval:
                    sent = self.answer.row.generated
                    yield protocol.frame(text)
        except (GenerationError, MemoryError) as error:
            self.failed = True
            failure = explain(error)
            self.metrics.failed(failure)
            yield protocol.error_frame(failure)
            return
        usage = CompletionUsage.of(self.answer).model_dump()
        yield protocol.frame(text, {"finish_reason": self.answer.finish_reason, "usage": usage})

    async def finish(self) -> None:
        """Counts the answer, and cancels it if it goes on: its client does not read it any more."""
        reason = self.answer.finish_reason or ("failed" if self.failed else "cancelled")
        self.answer.cancel()
        self.metrics.answered(self.answer, reason)


async def with_pauses(pieces: AsyncIterator[str], seconds: float) -> AsyncIterator[str]:
    """Passes pieces of text on, and an empty one whenever none has come for some time."""
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
    """Returns the worker as an application.

    Args:
        worker: The worker; the engine is the caller's to close.
        keys: API keys of clients.
        token: The secret shared with the controller, which comes with it where a client comes with a key.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)  # those of OpenAI's routes have these paths
    limits = worker.limits
    app.add_middleware(BodyLimit, max_body=limits.max_body, timeout=limits.body_timeout)
    app.add_middleware(RequireKey, keys=[*keys, token] if keys and token else keys)
    app.add_middleware(SameOrigin)
    app.add_middleware(MemoryGuard)

    @app.post("/worker_generate_stream")
    async def worker_generate_stream(request: Request) -> Response:
        work = worker.generate(await take_body(request), metrics)
        return await reply_unless_gone(request.receive, work)

    @app.post("/worker_get_status")
    async def worker_get_status() -> protocol.WorkerStatus:
        return worker.status()

    metrics = add_openai_routes(app, worker.engine, APISettings(tuple(worker.model_names), limits, tuple(keys)))
    return app


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line; a wrong one ends the process with exit code 2."""
    parser = OneLineParser(prog="model_worker", description="Serve a model to a controller and to clients.")
    add_model_flags(parser)
    add_server_flags(parser, PORT)
    add_token_flag(parser)
    parser.add_argument(
        "--worker-address",
        "--worker",  # so LLaVA's users shorten it, which is no longer clear beside --worker-token
        type=machine_address,
        help="where others reach this worker (default: http://localhost:PORT)",
    )
    parser.add_argument(
        "--controller-address",
        type=machine_address,
        default=CONTROLLER,
        help=f"the controller (default: {CONTROLLER})",
    )
    parser.add_argument("--no-register", action="store_true", help="do without a controller")
    parser.add_argument("--model-name", help="what clients call the model (default: its folder's name)")
    parser.add_argument(
        "--limit-model-concurrency",
        type=integer(),
        default=5,
        metavar="N",
        help="most answers generated together, as one batch (default: 5); more requests wait",
    )
    waiting = EngineLimits.max_waiting
    parser.add_argument("--max-waiting", type=integer(), default=waiting, help=f"most that wait (default: {waiting})")
    parser.add_argument("--stream-interval", type=integer(), default=1, help="fewest tokens a frame (default: 1)")
    parser.add_argument("--use-flash-attn", action="store_true", help="use FlashAttention 2")
    parser.add_argument("--multi-modal", action="store_true", help=argparse.SUPPRESS)  # old scripts still give it
    args = parser.parse_args(argv)
    if args.port:  # 0 is known once the server has found one
        args.worker_address = args.worker_address or f"http://localhost:{args.port}"
    problem = complaint(args)
    if problem:
        parser.error(problem)
    return args


def complaint(args: argparse.Namespace) -> str | None:
    """Says which flags do not go together; None if they all do."""
    if args.no_register:
        return None
    for name in ("worker_address", "controller_address"):
        flag, address = "--" + name.replace("_", "-"), getattr(args, name)
        if address is None:
            continue
        if not args.worker_token and not is_loopback(host_of(address)):
            return f"{flag} {address} is another machine's, so that --worker-token is needed"
    if api_keys(args) and not args.worker_token:
        return "with --api-key the controller needs --worker-token to be let in; or give --no-register"
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Loads the model and serves it until told to stop; returns the exit code."""
    args = parse_args(argv)
    log_to_console()
    return run_command("model_worker", lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Loads the model, registers at the controller and serves until told to stop."""
    limits = request_limits(args)
    engine_limits = EngineLimits(args.limit_model_concurrency, max_waiting=args.max_waiting)
    with take_address(args.host, args.port) as listener:
        engine = load_engine(args, switchable=True, limits=engine_limits, use_flash_attn=args.use_flash_attn)
        with closing(engine):
            serve_engine(args, engine, limits, listener)


def serve_engine(args: argparse.Namespace, engine: ChatEngine, limits: RequestLimits, listener: Listener) -> None:
    """Registers a loaded model at the controller and serves it until told to stop."""
    name = args.model_name or get_model_name_from_path(str(args.model_path or demo_model_path()))
    worker = ModelWorker(engine, [name], limits, args.stream_interval)
    app = create_app(worker, api_keys(args), args.worker_token)
    warn_of_open_port(args.host, api_keys(args))
    connections = ConnectionLimits(args.max_connections)
    if args.no_register:
        serve(app, listener, limits=connections)
        return
    address = args.worker_address or f"http://localhost:{listener.port}"
    link = Registration(args.controller_address, address, worker.status, args.worker_token)
    serve(app, listener, link.start, link.stop, connections)


if __name__ == "__main__":
    sys.exit(main())
