"""The worker: `python -m llava.serve.model_worker`. One engine behind LLaVA's routes, and OpenAI's beside them.

It registers with a controller and keeps that up; clients may also come to it directly. What a request asks for is told
in `wire`, how an answer comes about is the engine's matter.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Sequence

from fastapi import FastAPI, Request
from starlette.responses import Response

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.mm_utils import get_model_name_from_path
from llava.serve import wire
from llava.serve.answer import Answer
from llava.serve.cli import OneLineParser, add_model_flags, load_engine
from llava.serve.engine import ChatEngine, EngineLimits
from llava.serve.errors import GenerationError, explain, told_in_full
from llava.serve.http import (
    BodyLimit,
    RequestLimits,
    RequireKey,
    add_server_flags,
    api_keys,
    request_limits,
    serve,
)
from llava.serve.images import load_image_from_base64
from llava.serve.openai_api import add_openai_routes
from llava.serve.openai_chat import APISettings, qlip_of
from llava.serve.openai_replies import CompletionUsage
from llava.serve.registration import Registration
from llava.serve.trust import add_token_flag, host_of, is_loopback
from llava.utils import demo_model_path

logger = logging.getLogger(__name__)

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

    def status(self) -> wire.WorkerStatus:
        """Returns what the controller wants to know."""
        queue = self.engine.waiting + self.engine.running
        return wire.WorkerStatus(model_names=self.model_names, speed=1, queue_length=queue)

    async def generate(self, body: bytes) -> Response:
        """Returns the answer to a request as a stream of frames, or one frame that says why there is none."""
        try:
            request: wire.GenerateRequest = wire.parsed(wire.GenerateRequest, body)
            self.limits.check(len(request.images or ()), len(request.prompt))
            answer = await asyncio.to_thread(self._submit, request)
        except Exception as error:  # whatever it is, the client is told in a form that it can read
            return wire.error_reply(explain(error))

        async def release() -> None:
            answer.cancel()

        return wire.FrameStream(self._frames(request.prompt, answer), release)

    def _submit(self, request: wire.GenerateRequest) -> Answer:
        """Takes a request on. Decoding and preparing pictures takes time: not for the event loop's thread."""
        sampling, options = request.sampling(), qlip_of(request.qlip)
        images = [load_image_from_base64(text, self.limits.image) for text in request.images or ()]
        prompt = request.prompt.replace(DEFAULT_IMAGE_TOKEN, self.engine.image_token)
        return self.engine.submit(prompt, images, sampling, options, shorten=True)

    async def _frames(self, text: str, answer: Answer) -> AsyncIterator[bytes]:
        """The answer's frames; the last one tells why it ended and what it cost."""
        sent = 0
        try:
            async for piece in with_pauses(aiter(answer), self.silence):
                text += piece
                if not piece or answer.row.generated - sent >= self.stream_interval:
                    sent = answer.row.generated
                    yield wire.frame(text)
        except GenerationError as error:
            yield wire.error_frame(explain(error))
            return
        usage = CompletionUsage.of(answer).model_dump()
        yield wire.frame(text, {"finish_reason": answer.finish_reason, "usage": usage})


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
    app = FastAPI(title="LLaVA worker")
    limits = worker.limits
    app.add_middleware(BodyLimit, max_body=limits.max_body, timeout=limits.body_timeout)
    app.add_middleware(RequireKey, keys=[*keys, token] if keys and token else keys)

    @app.post("/worker_generate_stream")
    async def worker_generate_stream(request: Request) -> Response:
        return await worker.generate(await request.body())

    @app.post("/worker_get_status")
    async def worker_get_status() -> wire.WorkerStatus:
        return worker.status()

    add_openai_routes(app, worker.engine, APISettings(tuple(worker.model_names), limits, tuple(keys)))
    return app


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line; a wrong one ends the process with exit code 2."""
    parser = OneLineParser(prog="model_worker", description="Serve a model to a controller and to clients.")
    add_model_flags(parser)
    add_server_flags(parser, PORT)
    add_token_flag(parser)
    parser.add_argument("--worker-address", help="where others reach this worker (default: http://localhost:PORT)")
    parser.add_argument("--controller-address", default=CONTROLLER, help=f"the controller (default: {CONTROLLER})")
    parser.add_argument("--no-register", action="store_true", help="do without a controller")
    parser.add_argument("--model-name", help="what clients call the model (default: its folder's name)")
    parser.add_argument(
        "--limit-model-concurrency",
        type=int,
        default=5,
        metavar="N",
        help="most answers generated together, as one batch (default: 5); more requests wait",
    )
    waiting = EngineLimits.max_waiting
    parser.add_argument("--max-waiting", type=int, default=waiting, help=f"most that wait (default: {waiting})")
    parser.add_argument("--stream-interval", type=int, default=1, help="fewest tokens between frames (default: 1)")
    parser.add_argument("--use-flash-attn", action="store_true", help="use FlashAttention 2")
    parser.add_argument("--multi-modal", action="store_true", help=argparse.SUPPRESS)  # old scripts still give it
    args = parser.parse_args(argv)
    args.worker_address = args.worker_address or f"http://localhost:{args.port}"
    problem = complaint(args)
    if problem:
        parser.error(problem)
    return args


def complaint(args: argparse.Namespace) -> str | None:
    """Says which flags do not go together; None if they all do."""
    if args.stream_interval < 1:
        return f"--stream-interval must be at least 1, got {args.stream_interval}"
    if args.no_register:
        return None
    for name in ("worker_address", "controller_address"):
        flag, address = "--" + name.replace("_", "-"), getattr(args, name)
        try:
            host = host_of(address)
        except ValueError as error:
            return f"{flag} {address}: {error}"
        if not args.worker_token and not is_loopback(host):
            return f"{flag} {address} is another machine's, so that --worker-token is needed"
    if args.worker_token:
        return None
    if api_keys(args):
        return "with --api-key the controller needs --worker-token to be let in; or give --no-register"
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Loads the model and serves it until told to stop; returns the exit code."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s | %(levelname)s | %(name)s | %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        engine_limits = EngineLimits(args.limit_model_concurrency, max_waiting=args.max_waiting)
        limits = request_limits(args)
        engine = load_engine(args, switchable=True, limits=engine_limits, use_flash_attn=args.use_flash_attn)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"model_worker: error: {told_in_full(error)}", file=sys.stderr)
        return 2
    name = args.model_name or get_model_name_from_path(str(args.model_path or demo_model_path()))
    worker = ModelWorker(engine, [name], limits, args.stream_interval)
    app = create_app(worker, api_keys(args), args.worker_token)
    try:
        if args.no_register:
            serve(app, args.host, args.port)
        else:
            link = Registration(args.controller_address, args.worker_address, worker.status, args.worker_token)
            serve(app, args.host, args.port, link.start, link.stop)
    finally:
        engine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
