"""The OpenAI-compatible API: `python -m llava.serve.openai_api`, or `add_openai_routes` beside a server's own routes.

Routes, errors in OpenAI's shape, and the program that serves them. What a chat request means is told in `openai_chat`,
what it may hold in `openai_schema`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json

from llava.command import OneLineParser, integer, run_command
from llava.mm_utils import get_model_name_from_path
from llava.serve.bodies import BodyLimit, mark_taken
from llava.serve.cli import add_model_flags, load_engine
from llava.serve.connections import ConnectionLimits
from llava.serve.disconnects import CLIENT_GONE, ClientGone, unless_gone
from llava.serve.engine import ChatEngine, EngineLimits
from llava.serve.errors import EngineClosed
from llava.serve.http import (
    MemoryGuard,
    RequireKey,
    SameOrigin,
    add_server_flags,
    api_keys,
    request_limits,
    serve,
)
from llava.serve.listening import Listener, take_address
from llava.serve.metrics import CountResponses, Metrics
from llava.serve.openai_answer import EventStream
from llava.serve.openai_chat import APISettings, Chat
from llava.serve.openai_errors import add_error_handlers, refusing
from llava.serve.openai_replies import ChatCompletion, ChatCompletionChunk, ErrorReply, Health, Model, ModelList
from llava.serve.openai_schema import ChatRequest
from llava.serve.trust import is_loopback
from llava.utils import demo_model_path

DEFAULT_PORT = 8000
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorReply, "description": "The request is refused; `code` says why."},
    "5XX": {"model": ErrorReply, "description": "The server failed, or is shutting down."},
}
SCHEMAS = "#/components/schemas/{model}"
EVENT = {
    "anyOf": [
        {"const": "[DONE]"},
        *(
            {
                "type": "string",
                "contentMediaType": "application/json",
                "contentSchema": {"$ref": SCHEMAS.format(model=model.__name__)},
            }
            for model in (ChatCompletionChunk, ErrorReply)
        ),
    ]
}
EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; with `stream`, as events of `ChatCompletionChunk` that end with `[DONE]`.",
        "content": {
            "text/event-stream": {
                "itemSchema": {"type": "object", "properties": {"data": EVENT}, "required": ["data"]},
            }
        },
    }
}


class DescribedAPI(FastAPI):
    """An application whose OpenAPI document describes the events of a stream too."""

    def openapi(self) -> dict[str, Any]:
        """Returns the document."""
        if not self.openapi_schema:
            chunk = ChatCompletionChunk.model_json_schema(ref_template=SCHEMAS)
            parts = chunk.pop("$defs") | {ChatCompletionChunk.__name__: chunk}
            super().openapi()["components"]["schemas"].update(parts)
        return super().openapi()


def openai_app(engine: ChatEngine, settings: APISettings) -> FastAPI:
    """Returns the API as an application of its own, with its limits and keys.

    Args:
        engine: Answers; it is the caller's to close.
        settings: Names, limits and keys.

    Returns:
        The application; `state.metrics` is what it counts.
    """
    metrics = Metrics(engine)
    app = DescribedAPI(
        title="LLaVA with QLIP",
        summary="Chat about pictures in the OpenAI protocol.",
        responses=ERRORS,
    )
    app.state.metrics = metrics
    chat = Chat(engine, settings, metrics)
    app.include_router(chat_routes(chat))
    app.include_router(model_routes(chat))
    app.include_router(operation_routes(engine, metrics))
    add_error_handlers(app, metrics)
    # The last one added is the first to see a request.
    app.add_middleware(BodyLimit, max_body=settings.limits.max_body, timeout=settings.limits.body_timeout)
    app.add_middleware(RequireKey, keys=settings.api_keys)
    app.add_middleware(SameOrigin)
    app.add_middleware(MemoryGuard)
    app.add_middleware(CountResponses, metrics=metrics)
    return app


def add_openai_routes(app: FastAPI, engine: ChatEngine, settings: APISettings) -> Metrics:
    """Serves the API beside an application's own routes; call it when those are in place, for they go first.

    The API keeps its own error shapes, limits, keys and metrics, and answers whatever path the application does not.

    Args:
        app: Gets the API.
        engine: Answers; may be the application's own.
        settings: Names, limits and keys.

    Returns:
        What `/metrics` tells, so that the application can count its own answers too.
    """
    api = openai_app(engine, settings)
    app.mount("", api)
    return api.state.metrics


class JSONRequest(Request):
    """A request whose body is strict JSON: no NaN, no halves of surrogate pairs, which no tokenizer can take."""

    async def json(self) -> Any:
        """Returns the body's value."""
        body = await self.body()
        try:
            return from_json(body, allow_inf_nan=False)
        except ValueError as error:
            raise HTTPException(400, f"the body is not JSON: {error}") from None


class JSONRoute(APIRoute):
    """A route that reads its body as strict JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Returns the handler."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(JSONRequest(request.scope, request.receive))

        return handle


def chat_routes(chat: Chat) -> APIRouter:
    """Returns the route that answers."""
    router = APIRouter(route_class=JSONRoute, tags=["chat"])

    @router.post("/v1/chat/completions", response_model=ChatCompletion, responses=EVENTS)
    async def chat_completions(asked: ChatRequest, request: Request) -> Any:
        """Answers the last message of a dialogue, whole or as a stream of events."""
        try:
            reply = await unless_gone(request.receive, chat.begin(asked))
        except ClientGone:
            return Response(status_code=CLIENT_GONE)
        if asked.stream:
            mark_taken(request.scope)
            return EventStream(reply)
        completion = await reply.whole(request)
        return Response(status_code=CLIENT_GONE) if completion is None else completion

    return router


def model_routes(chat: Chat) -> APIRouter:
    """Returns the routes that name the model."""
    router = APIRouter(tags=["models"])
    created = int(time.time())

    def describe(name: str) -> Model:
        return Model(id=name, created=created, max_model_len=chat.engine.context_len)

    @router.get("/v1/models")
    async def list_models() -> ModelList:
        """The names under which the model is served."""
        return ModelList(data=[describe(name) for name in chat.settings.model_names])

    @router.get("/v1/models/{model:path}")
    async def retrieve_model(model: str) -> Model:
        """One of them."""
        chat.check_model(model, param=None)
        return describe(model)

    return router


def operation_routes(engine: ChatEngine, metrics: Metrics) -> APIRouter:
    """Returns the routes that those ask who run the server."""
    router = APIRouter(tags=["operation"])

    @router.get("/health")
    async def health() -> Health:
        """Whether requests are taken; needs no key."""
        if engine.closed:
            with refusing():
                raise EngineClosed
        return Health()

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def read_metrics(request: Request) -> Response:
        """Counters and times in Prometheus' text format."""
        text, content_type = metrics.text(request.headers.get("accept", ""))
        return Response(text, headers={"Content-Type": content_type})

    return router


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line; a wrong one ends the process with exit code 2."""
    parser = OneLineParser(prog="llava.serve.openai_api", description="Serve the model in the OpenAI protocol.")
    add_model_flags(parser)
    add_server_flags(parser, DEFAULT_PORT)
    parser.add_argument(
        "--served-model-name",
        nargs="+",
        metavar="NAME",
        help="what clients may call the model (default: the name of its folder)",
    )
    limits = EngineLimits()
    parser.add_argument("--max-batch", type=integer(), default=limits.max_batch, help="most answers at a time")
    parser.add_argument("--max-waiting", type=integer(), default=limits.max_waiting, help="most requests that wait")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the server until it is told to stop, and returns the exit code."""
    args = parse_args(argv)

    def work() -> None:
        with take_address(args.host, args.port) as listener:
            engine, settings = load(args)
            run(engine, settings, listener, ConnectionLimits(args.max_connections))

    return run_command("llava.serve.openai_api", work)


def load(args: argparse.Namespace) -> tuple[ChatEngine, APISettings]:
    """Returns the engine and the settings that the flags of `parse_args` name."""
    names = args.served_model_name or [get_model_name_from_path(str(args.model_path or demo_model_path()))]
    settings = APISettings(tuple(names), request_limits(args), tuple(api_keys(args)))
    limits = EngineLimits(args.max_batch, max_waiting=args.max_waiting)
    return load_engine(args, switchable=True, limits=limits), settings


def run(
    engine: ChatEngine, settings: APISettings, listener: Listener, connections: ConnectionLimits | None = None
) -> None:
    """Serves an engine until it is told to stop, lets its answers end, and closes it."""

    async def announce() -> None:
        print(
            f"{', '.join(settings.model_names)} at http://{listener.host}:{listener.port}/v1",
            file=sys.stderr,
            flush=True,
        )
        if not settings.api_keys and not is_loopback(listener.host):
            print("whoever reaches this port may use it; --api-key lets only those in who have one", file=sys.stderr)

    async def refuse_more() -> None:
        asyncio.get_running_loop().run_in_executor(None, engine.close)

    try:
        serve(openai_app(engine, settings), listener, on_start=announce, on_stop=refuse_more, limits=connections)
    finally:
        engine.close()


if __name__ == "__main__":
    sys.exit(main())
