"""The controller as an ASGI application: LLaVA's routes for workers and for clients.

Starlette and pydantic without FastAPI, whose import takes longer than those of all else that a controller needs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from llava.serve.engine.errors import EngineClosedError
from llava.serve.http.addresses import host_of, is_loopback
from llava.serve.http.auth import RequireKey, SameOrigin
from llava.serve.http.bodies import BodyLimit, take_body
from llava.serve.http.disconnects import reply_unless_gone
from llava.serve.http.failures import RequestError, explain, explain_routing
from llava.serve.http.guards import MemoryGuard
from llava.serve.http.limits import RequestLimits
from llava.serve.http.replies import error_response
from llava.serve.http.routing import route_path
from llava.serve.workers import protocol
from llava.serve.workers.auth import WorkersOnly, controller_tokens, refusal
from llava.serve.workers.client import HOPS, INSTANCE, MAX_SHORT
from llava.serve.workers.dispatcher import Dispatcher
from llava.serve.workers.protocol import ANSWERS, STATUS

Call = Callable[[Request], Awaitable[Response]]

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
        limit = self.full if scope["type"] == "http" and route_path(scope) == ANSWERS else self.short
        await limit(scope, receive, send)


def create_app(
    dispatcher: Dispatcher,
    token: str | None = None,
    on_loopback: bool = False,
    keys: Sequence[str] = (),
    limits: RequestLimits | None = None,
) -> Starlette:
    """Builds the controller's application.

    Args:
        dispatcher: Sends requests to workers; closed with the application.
        token: The token shared with the workers; without one, workers must be on this machine.
        on_loopback: Whether the server listens on loopback addresses only.
        keys: API keys of clients.
        limits: What a request may hold.
    """

    routes = Routes(dispatcher, token)
    # Once before a body is read, and once in the routes themselves, whatever way a request has found them.
    of_workers = Middleware(WorkersOnly, token=token, on_loopback=on_loopback)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await dispatcher.close()

    app = Starlette(
        routes=[
            Route("/health", routes.health),
            *(
                Route(path, call, methods=["POST"], middleware=[of_workers] if path in WORKERS_PATHS else None)
                for path, call in routes.calls()
            ),
        ],
        # No body is read before its sender is authenticated.
        middleware=[
            Middleware(MemoryGuard),
            Middleware(SameOrigin),
            Middleware(
                RequireKey,
                keys=keys,
                open_paths={"/health", *WORKERS_PATHS},
                path_tokens=controller_tokens(token),
            ),
            Middleware(WorkersOnly, token=token, on_loopback=on_loopback, paths=WORKERS_PATHS),
            Middleware(BodyLimits, limits=limits or RequestLimits()),
        ],
        exception_handlers={RequestError: _report, HTTPException: _report_http, Exception: _report},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # a redirect would name http, which a TLS proxy before it does not serve
    return app


async def _report(request: Request, error: Exception) -> Response:
    return error_response(explain(error))


async def _report_http(request: Request, error: HTTPException) -> Response:
    failure = explain_routing(error.status_code, request.method, error.detail)
    return error_response(failure, headers=error.headers)


class Routes:
    """The controller's routes."""

    def __init__(self, dispatcher: Dispatcher, token: str | None) -> None:
        """
        Args:
            dispatcher: Sends requests to workers.
            token: The token shared with the workers.
        """
        self.dispatcher, self.registry, self.token = dispatcher, dispatcher.registry, token

    def calls(self) -> list[tuple[str, Call]]:
        """Lists the paths that take POST with their functions; a controller above this one calls `/worker_...`."""
        return [
            ("/register_worker", self.register_worker),
            ("/unregister_worker", self.unregister_worker),
            ("/receive_heart_beat", self.receive_heart_beat),
            ("/refresh_all_workers", self.refresh_all_workers),
            ("/list_models", self.list_models),
            ("/get_worker_address", self.get_worker_address),
            (STATUS, self.worker_get_status),
            (ANSWERS, self.worker_generate_stream),
        ]

    async def register_worker(self, request: Request) -> Response:
        """Registers a worker; without a token, only one of this machine."""
        worker: protocol.RegisterRequest = await _read(request, protocol.RegisterRequest)
        if not self.token and not is_loopback(host_of(worker.worker_name)):
            raise refusal(self.token)
        await self.dispatcher.register(worker)
        return JSONResponse(None)

    async def unregister_worker(self, request: Request) -> Response:
        """Drops a worker that stops."""
        worker: protocol.WorkerRequest = await _read(request, protocol.WorkerRequest)
        self.registry.remove(worker.worker_name, "it has unregistered")
        return JSONResponse(None)

    async def receive_heart_beat(self, request: Request) -> Response:
        """Records a heartbeat; an unknown worker learns that it must register."""
        beat: protocol.HeartBeat = await _read(request, protocol.HeartBeat)
        return JSONResponse({"exist": self.registry.heart_beat(beat.worker_name, beat.queue_length)})

    async def health(self, request: Request) -> Response:
        """Says which controller this is, and whether it takes requests for answers."""
        own = {INSTANCE: self.dispatcher.instance}
        if self.dispatcher.stopping:
            return error_response(explain(EngineClosedError()), headers=own)
        return JSONResponse({"status": "ok"}, headers=own)

    async def refresh_all_workers(self, request: Request) -> Response:
        """Asks all workers for their status."""
        await self.dispatcher.refresh()
        return JSONResponse(None)

    async def list_models(self, request: Request) -> Response:
        """Lists the served models, and the prompt templates that workers state."""
        modes = self.registry.conv_modes()
        return JSONResponse({"models": self.registry.models(), **({"conv_modes": modes} if modes else {})})

    async def get_worker_address(self, request: Request) -> Response:
        """Chooses a worker that the client calls directly; an empty address if there is none."""
        wanted: protocol.ModelRequest = await _read(request, protocol.ModelRequest)
        return JSONResponse({"address": await self.dispatcher.choose(wanted.model, finishes=False) or ""})

    async def worker_generate_stream(self, request: Request) -> Response:
        """Forwards a request for an answer to a worker."""
        hops = [hop for hop in request.headers.get(HOPS, "").split(",") if hop]
        work = self.dispatcher.generate(await take_body(request), hops)
        return await reply_unless_gone(request.receive, work)

    async def worker_get_status(self, request: Request) -> Response:
        """Adds up the workers' status."""
        return JSONResponse(self.registry.status().fields())


async def _read(request: Request, model: type[BaseModel]) -> Any:
    """Reads a JSON body.

    Raises:
        RequestError: it is invalid, or its content type is not JSON's (browsers send other types for any page).
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise RequestError(400, "invalid_request", "the body must be JSON, with Content-Type: application/json")
    try:
        return protocol.parsed(model, await request.body())
    except ValueError as error:
        raise RequestError(400, "invalid_request", str(error)) from None
