"""The controller, `python -m llava.serve.controller`: workers register with it, and it passes requests on to them.

It speaks LLaVA's wire protocol on both sides, and may itself be registered as a worker of another controller. It keeps
nothing on disk: after a restart it knows its workers again with their next heartbeat.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import get_args

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from llava.command import OneLineParser, run_command
from llava.serve.engine.errors import ran_out_of_memory
from llava.serve.http.auth import RequireKey, SameOrigin
from llava.serve.http.bodies import BodyLimit, take_body
from llava.serve.http.connections import ConnectionLimits
from llava.serve.http.disconnects import reply_unless_gone
from llava.serve.http.failures import Failure, RequestError, error_response, explain
from llava.serve.http.flags import add_server_flags, api_keys
from llava.serve.http.limits import RequestLimits
from llava.serve.http.listening import take_address
from llava.serve.http.server import MemoryGuard, log_to_console, serve
from llava.serve.workers import protocol
from llava.serve.workers.auth import (
    WORKER_TOKEN_VARIABLE,
    WorkersOnly,
    add_token_flag,
    host_of,
    is_loopback,
    refusal,
    warn_of_open_port,
)
from llava.serve.workers.dispatcher import HOPS, INSTANCE, MAX_SHORT, Dispatcher
from llava.serve.workers.registry import Dispatch, Registry

PORT = 21001
ANSWERS = "/worker_generate_stream"
WORKERS_PATHS = ("/register_worker", "/unregister_worker", "/receive_heart_beat")


class BodyLimits:
    """ASGI middleware: pictures come with requests for an answer only; all others are short."""

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
    """Returns the controller as an application.

    Args:
        dispatcher: Sends requests to workers; closed with the application.
        token: The secret shared with the workers; without one, workers must be on this machine.
        on_loopback: Whether the server listens on loopback addresses only.
        keys: API keys of clients.
        limits: What a request may hold.
    """
    limits = limits or RequestLimits()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await dispatcher.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)  # docs/WORKERS.md says more
    # What is added last is asked first: nobody's body is read before it is known who sends it.
    app.add_middleware(BodyLimits, limits=limits)
    app.add_middleware(WorkersOnly, paths=WORKERS_PATHS, token=token, on_loopback=on_loopback)
    app.add_middleware(RequireKey, keys=keys, open_paths={"/health", *WORKERS_PATHS})
    app.add_middleware(SameOrigin)
    app.add_middleware(MemoryGuard)
    add_workers_routes(app, dispatcher, token)
    add_clients_routes(app, dispatcher)

    @app.exception_handler(RequestError)
    @app.exception_handler(Exception)
    async def refuse(request: Request, error: Exception) -> Response:
        return error_response(explain(error))

    @app.exception_handler(RequestValidationError)
    async def complain(request: Request, error: RequestValidationError) -> Response:
        return error_response(protocol.invalid(error.errors()))

    @app.exception_handler(HTTPException)
    async def tell(request: Request, error: HTTPException) -> Response:
        if ran_out_of_memory(error.__cause__):  # FastAPI takes it for a bad body
            return error_response(explain(error.__cause__))
        return error_response(Failure(error.status_code, "invalid_request", str(error.detail)))

    return app


def add_workers_routes(app: FastAPI, dispatcher: Dispatcher, token: str | None) -> None:
    """Adds what workers ask of a controller."""

    @app.post("/register_worker")
    async def register_worker(request: protocol.RegisterRequest) -> None:
        if not token and not is_loopback(host_of(request.worker_name)):
            raise refusal(token)
        await dispatcher.register(request)

    @app.post("/unregister_worker")
    async def unregister_worker(request: protocol.WorkerRequest) -> None:
        dispatcher.registry.remove(request.worker_name, "it said goodbye")

    @app.post("/receive_heart_beat")
    async def receive_heart_beat(request: protocol.HeartBeat) -> dict[str, bool]:
        return {"exist": dispatcher.registry.heart_beat(request.worker_name, request.queue_length)}


def add_clients_routes(app: FastAPI, dispatcher: Dispatcher) -> None:
    """Adds what clients ask of a controller; `/worker_...` also serve a controller above this one."""

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


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line; a wrong one ends the process with exit code 2."""
    parser = OneLineParser(prog="controller", description="Send requests to the workers that register here.")
    add_server_flags(parser, PORT, reads=False)
    add_token_flag(parser)
    parser.add_argument(
        "--dispatch-method",
        choices=get_args(Dispatch),
        default="shortest_queue",
        help="draw a worker, a fast one more often, or take the one with the shortest queue (default)",
    )
    args = parser.parse_args(argv)
    if not args.worker_token and not is_loopback(args.host):
        parser.error(f"--host {args.host} needs --worker-token (or ${WORKER_TOKEN_VARIABLE}): no worker could register")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until told to stop, and returns the exit code."""
    args = parse_args(argv)
    log_to_console()
    return run_command("controller", lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Serves until told to stop."""
    limits = RequestLimits(max_body=args.max_body_bytes)
    dispatcher, keys = Dispatcher(Registry(args.dispatch_method), args.worker_token), api_keys(args)
    app = create_app(dispatcher, args.worker_token, is_loopback(args.host), keys, limits)
    with take_address(args.host, args.port) as listener:
        warn_of_open_port(args.host, keys)
        serve(app, listener, limits=ConnectionLimits(args.max_connections))


if __name__ == "__main__":
    sys.exit(main())
