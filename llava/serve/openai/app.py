"""The OpenAI-compatible API as an ASGI application, alone or beside a server's other routes."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.types import ASGIApp

from llava.serve.engine import ChatEngine
from llava.serve.engine.errors import EngineClosedError
from llava.serve.http.auth import RequireKey, SameOrigin
from llava.serve.http.bodies import BodyLimit, mark_taken
from llava.serve.http.disconnects import CLIENT_GONE, ClientGoneError, unless_gone
from llava.serve.http.guards import MemoryGuard
from llava.serve.http.metrics import CountResponses, Metrics
from llava.serve.openai.chat import APISettings, Chat
from llava.serve.openai.errors import add_error_handlers, refusing
from llava.serve.openai.replies import ChatCompletion, ChatCompletionChunk, ErrorReply, Health, Model, ModelList
from llava.serve.openai.requests import ChatRequest
from llava.serve.openai.stream import EventStream
from llava.utils import PROJECT, installed

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


class CountedAPI(FastAPI):
    """A FastAPI application whose replies are counted in its `state.metrics`, and which redirects nobody."""

    def __init__(self, **options: Any) -> None:
        """Takes FastAPI's options. Behind a TLS proxy a redirect to the path without its slash would name http."""
        super().__init__(redirect_slashes=False, **options)

    def build_middleware_stack(self) -> ASGIApp:
        """Adds the count outside of all middleware: Starlette's own answers errors that nothing else has handled."""
        return CountResponses(super().build_middleware_stack(), self.state.metrics)


class DescribedAPI(CountedAPI):
    """A counted application whose OpenAPI document also describes the events of a stream."""

    def openapi(self) -> dict[str, Any]:
        """Builds the document."""
        if not self.openapi_schema:
            chunk = ChatCompletionChunk.model_json_schema(ref_template=SCHEMAS)
            parts = chunk.pop("$defs") | {ChatCompletionChunk.__name__: chunk}
            super().openapi()["components"]["schemas"].update(parts)
        return super().openapi()


def openai_app(engine: ChatEngine, settings: APISettings, checked: bool = False) -> FastAPI:
    """Builds the API as an application.

    Args:
        engine: Answers requests; the caller closes it.
        settings: Names, limits and keys.
        checked: Whether an outer application has checked the origin, the key and the body of each request.

    Returns:
        The application; `state.metrics` holds its metrics.
    """
    metrics = Metrics(engine)
    app = DescribedAPI(
        title="LLaVA with QLIP",
        redoc_url=None,  # /docs is enough
        version=installed(PROJECT) or "unknown",  # a checkout that was not installed has no version
        summary="Chat about pictures in the OpenAI protocol.",
        responses=ERRORS,
    )
    app.state.metrics = metrics
    chat = Chat(engine, settings, metrics)
    app.include_router(chat_routes(chat))
    app.include_router(model_routes(chat))
    app.include_router(operation_routes(engine, metrics))
    add_error_handlers(app, metrics)
    # The middleware added last runs first.
    if not checked:
        app.add_middleware(BodyLimit, max_body=settings.limits.max_body, timeout=settings.limits.body_timeout)
        app.add_middleware(RequireKey, keys=settings.api_keys)
        app.add_middleware(SameOrigin)
    app.add_middleware(MemoryGuard)
    return app


def add_openai_routes(app: FastAPI, engine: ChatEngine, settings: APISettings, checked: bool = False) -> Metrics:
    """Serves the API beside an application's other routes; add those first, since the first match wins.

    The API has separate error shapes, limits, keys and metrics, and handles every path that the application does not.

    Args:
        app: Gets the API.
        engine: Answers requests; the application may use it too.
        settings: Names, limits and keys.
        checked: Whether the application's middleware checks the origin, the key and the body of each request.

    Returns:
        The metrics of `/metrics`, to which the application can add its other answers.
    """
    api = openai_app(engine, settings, checked)
    app.mount("", api)
    return api.state.metrics


class JSONRequest(Request):
    """A request whose body is strict JSON: no NaN, and no unpaired surrogates, which tokenizers reject."""

    async def json(self) -> Any:
        """Parses the body."""
        body = await self.body()
        try:
            return from_json(body, allow_inf_nan=False)
        except ValueError as error:
            raise HTTPException(400, f"the body is not JSON: {error}") from None


class JSONRoute(APIRoute):
    """A route that reads its body as strict JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Builds the handler."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(JSONRequest(request.scope, request.receive))

        return handle


def chat_routes(chat: Chat) -> APIRouter:
    """Builds the chat route."""
    router = APIRouter(route_class=JSONRoute, tags=["chat"])

    @router.post("/v1/chat/completions", response_model=ChatCompletion, responses=EVENTS)
    async def chat_completions(asked: ChatRequest, request: Request) -> Any:
        """Answers the last message of a conversation, as one reply or as a stream of events."""
        try:
            reply = await unless_gone(request.receive, chat.begin(asked))
        except ClientGoneError:
            return Response(status_code=CLIENT_GONE)
        if asked.stream:
            mark_taken(request.scope)
            return EventStream(reply)
        completion = await reply.whole(request)
        return Response(status_code=CLIENT_GONE) if completion is None else completion

    return router


def model_routes(chat: Chat) -> APIRouter:
    """Builds the routes that describe the model."""
    router = APIRouter(tags=["models"])
    created = int(time.time())

    def describe(name: str) -> Model:
        return Model(id=name, created=created, max_model_len=chat.engine.context_len)

    @router.get("/v1/models")
    async def list_models() -> ModelList:
        """Lists the names under which the model is served."""
        return ModelList(data=[describe(name) for name in chat.settings.model_names])

    @router.get("/v1/models/{model:path}")
    async def retrieve_model(model: str) -> Model:
        """Describes the model under one of its names."""
        chat.check_model(model, param=None)
        return describe(model)

    return router


def operation_routes(engine: ChatEngine, metrics: Metrics) -> APIRouter:
    """Builds the routes for the server's operator."""
    router = APIRouter(tags=["operation"])

    @router.head("/health", include_in_schema=False)
    @router.get("/health")
    async def health() -> Health:
        """Whether the server accepts requests; needs no key."""
        if engine.closed:
            with refusing():
                raise EngineClosedError
        return Health()

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def read_metrics(request: Request) -> Response:
        """Counters and times in Prometheus' text format."""
        text, content_type = metrics.text(request.headers.get("accept", ""))
        return Response(text, headers={"Content-Type": content_type})

    return router
