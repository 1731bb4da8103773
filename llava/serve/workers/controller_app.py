"""The controller as an ASGI application: LLaVA's routes for workers and for clients."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from llava.serve.engine.errors import ran_out_of_memory
from llava.serve.http.addresses import host_of, is_loopback
from llava.serve.http.auth import RequireKey, SameOrigin
from llava.serve.http.bodies import BodyLimit, take_body
from llava.serve.http.disconnects import reply_unless_gone
from llava.serve.http.failures import Failure, RequestError, explain
from llava.serve.http.guards import MemoryGuard
from llava.serve.http.limits import RequestLimits
from llava.serve.http.replies import error_response
from llava.serve.workers import protocol
from llava.serve.workers.auth import WorkersOnly, refusal
from llava.serve.workers.client import HOPS, INSTANCE, MAX_SHORT
from llava.serve.workers.dispatcher import Dispatcher

ANSWERS = "/worker_generate_stream"
WORKERS_PATHS = ("/register_worker", "/unregister_worker", "/receive_heart_beat")


class BodyLimits:
    """ASGI middleware: a request for an answer may hold images; all other requests must be short."""

    def __init__(self, app: ASGIApp, limits: RequestLimits) -> None:
        """
        Args:
            app: The application.
            limits: What a request for an answer may hold.
        """
        self.full = BodyLimit(app, max_body=limits.max_body, timeout=limits.body_timeout)
        self.short = BodyLimit(app, max_body=min(MAX_SHORT, limits.max_body), timeout=limits.body_timeout)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection."""
        limit = self.full if scope.get("path") == ANSWERS else self.short
        await limit(scope, receive, send)


def create_app(
    dispatcher: Dispatcher,
    token: str | None = None,
    on_loopback: bool = False,
    keys: Sequence[str] = (),
    limits: RequestLimits | None = None,
) -> FastAPI:
    """Builds the controller's application.

    Args:
        dispatcher: Sends requests to workers; closed with the application.
        token: The token shared with the workers; without one, workers must be on this machine.
        on_loopback: Whether the server listens on loopback addresses only.
        keys: API keys of clients.
        limits: What a request may hold.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await dispatcher.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)  # docs/WORKERS.md says more
    # The middleware added last runs first: no body is read before its sender is authenticated.
    app.add_middleware(BodyLimits, limits=limits or RequestLimits())
    app.add_middleware(WorkersOnly, paths=WORKERS_PATHS, token=token, on_loopback=on_loopback)
    app.add_middleware(RequireKey, keys=keys, open_paths={"/health", *WORKERS_PATHS})
    app.add_middleware(SameOrigin)
    app.add_middleware(MemoryGuard)
    _add_worker_routes(app, dispatcher, token)
    _add_client_routes(app, dispatcher)
    _add_error_handlers(app)
    return app


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    @app.exception_handler(Exception)
    async def report(request: Request, error: Exception) -> Response:
        return error_response(explain(error))

    @app.exception_handler(RequestValidationError)
    async def report_invalid(request: Request, error: RequestValidationError) -> Response:
        return error_response(protocol.invalid(error.errors()))

    @app.exception_handler(HTTPException)
    async def report_http(request: Request, error: HTTPException) -> Response:
        if ran_out_of_memory(error.__cause__):  # FastAPI raises it as a malformed body
            return error_response(explain(error.__cause__))
        return error_response(Failure(error.status_code, "invalid_request", str(error.detail)))


def _add_worker_routes(app: FastAPI, dispatcher: Dispatcher, token: str | None) -> None:
    """Adds the routes that workers call."""

    @app.post("/register_worker")
    async def register_worker(request: protocol.RegisterRequest) -> None:
        if not token and not is_loopback(host_of(request.worker_name)):
            raise refusal(token)
        await dispatcher.register(request)

    @app.post("/unregister_worker")
    async def unregister_worker(request: protocol.WorkerRequest) -> None:
        dispatcher.registry.remove(request.worker_name, "it has unregistered")

    @app.post("/receive_heart_beat")
    async def receive_heart_beat(request: protocol.HeartBeat) -> dict[str, bool]:
        return {"exist": dispatcher.registry.heart_beat(request.worker_name, request.queue_length)}


def _add_client_routes(app: FastAPI, dispatcher: Dispatcher) -> None:
    """Adds the routes that clients call; a controller above this one calls `/worker_...`."""

    @app.get("/health")
    async def health() -> Response:
        return JSONResponse({"status": "ok"}, headers={INSTANCE: dispatcher.instance})

    @app.post("/refresh_all_workers")
    async def refresh_all_workers() -> None:
        await dispatcher.refresh()

    @app.post("/list_models")
    async def list_models() -> dict[str, list[str]]:
        return {"models": dispatcher.registry.models()}

    @app.post("/get_worker_address")
    async def get_worker_address(request: protocol.ModelRequest) -> dict[str, str]:
        return {"address": await dispatcher.choose(request.model, finishes=False) or ""}

    @app.post(ANSWERS)
    async def worker_generate_stream(request: Request) -> Response:
        hops = [hop for hop in request.headers.get(HOPS, "").split(",") if hop]
        work = dispatcher.generate(await take_body(request), hops)
        return await reply_unless_gone(request.receive, work)

    @app.post("/worker_get_status")
    async def worker_get_status() -> protocol.WorkerStatus:
        return dispatcher.registry.status()
