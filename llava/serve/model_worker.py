"""The worker, `python -m llava.serve.model_worker`: serves one model, by LLaVA's routes and OpenAI's.

It registers with a controller and sends it heartbeats; clients may also connect to it directly.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

from llava.command import OneLineParser, integer, run_command
from llava.serve.http.addresses import format_host, host_of, is_loopback, local_url, machine_address
from llava.serve.http.flags import (
    add_engine_flags,
    add_server_flags,
    api_keys,
    engine_limits,
    name_text,
    request_limits,
)
from llava.serve.http.listening import Listener, take_address
from llava.serve.http.logs import log_to_console, warn_of_open_port
from llava.serve.loading import add_model_flags, load_engine
from llava.serve.workers.flags import add_token_flag

if TYPE_CHECKING:
    from llava.serve.engine import ChatEngine

PORT = 21002
CONTROLLER = "http://localhost:21001"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line; a wrong one ends the process with exit code 2."""
    parser = OneLineParser(prog="model_worker", description="Serve a model to a controller and to clients.")
    add_model_flags(parser)
    add_server_flags(parser, PORT)
    add_token_flag(parser)
    parser.add_argument(
        "--worker-address",
        "--worker",  # LLaVA's users abbreviate the flag, which is ambiguous beside --worker-token
        type=machine_address,
        help="where others reach this worker (default: http://HOST:PORT of --host and --port; localhost for 127.0.0.1"
        " and 0.0.0.0)",
    )
    parser.add_argument(
        "--controller-address",
        type=machine_address,
        default=CONTROLLER,
        help=f"the controller (default: {CONTROLLER})",
    )
    parser.add_argument("--no-register", action="store_true", help="run without a controller")
    parser.add_argument("--model-name", type=name_text, help="the model's name for clients (default: its folder's)")
    parser.add_argument(
        "--limit-model-concurrency",
        type=integer(),
        default=5,
        metavar="N",
        help="most answers generated together (default: 5); more requests wait",
    )
    add_engine_flags(parser)
    parser.add_argument("--stream-interval", type=integer(), default=1, help="fewest tokens a frame (default: 1)")
    parser.add_argument("--use-flash-attn", action="store_true", help="use FlashAttention 2")
    parser.add_argument("--multi-modal", action="store_true", help=argparse.SUPPRESS)  # for LLaVA's old scripts
    args = parser.parse_args(argv)
    conflict = find_conflict(args)
    if conflict:
        parser.error(conflict)
    if args.port:  # port 0 is chosen later
        args.worker_address = args.worker_address or local_url(args.host, args.port)
    return args


def find_conflict(args: argparse.Namespace) -> str | None:
    """Describes the first conflict between flags; None if there is none."""
    if args.no_register:
        return None
    for name in ("worker_address", "controller_address"):
        flag, address = "--" + name.replace("_", "-"), getattr(args, name)
        if address is None:
            continue
        if not args.worker_token and not is_loopback(host_of(address)):
            return f"{flag} {address} is another machine's, so --worker-token is needed"
    if args.worker_address is None and (conflict := _find_conflict_of_host(args)):
        return conflict
    if api_keys(args) and not args.worker_token:
        return "with --api-key the controller needs --worker-token to be let in; or give --no-register"
    return None


def _find_conflict_of_host(args: argparse.Namespace) -> str | None:
    """Describes why the address that `--host` gives the worker cannot be registered; None if it can."""
    example = f"--worker-address, such as http://THIS-MACHINE:{args.port or 'PORT'}"
    try:
        host = host_of(local_url(args.host, args.port or PORT))
    except ValueError as error:
        return f"--host {args.host} cannot be registered as an address ({error}); give {example}"
    if not is_loopback(host):
        if args.worker_token:
            return None
        return (
            f"--host {args.host} is also the address to register, which is not a loopback address, so --worker-token"
            " is needed; or give --worker-address"
        )
    if not is_loopback(host_of(args.controller_address)):
        return (
            f"--controller-address {args.controller_address} may be another machine's, which would not reach this one"
            f" at {format_host(host)}; give {example}"
        )
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Serves a model until it gets a signal to stop; returns the exit code."""
    args = parse_args(argv)
    return run_command("model_worker", lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Loads the model and serves it until it gets a signal to stop."""
    log_to_console()
    limits = engine_limits(args, args.limit_model_concurrency)
    with take_address(args.host, args.port) as listener:
        engine = load_engine(args, switchable=True, limits=limits, use_flash_attn=args.use_flash_attn)
        with closing(engine):
            serve_engine(args, engine, listener)


def serve_engine(args: argparse.Namespace, engine: ChatEngine, listener: Listener) -> None:
    """Registers a loaded model with the controller and serves it until a signal to stop."""
    from llava.mm_utils import get_model_name_from_path
    from llava.serve.http.limits import ConnectionLimits
    from llava.serve.http.server import refuse_more, serve
    from llava.serve.workers.heartbeat import Registration
    from llava.serve.workers.worker_app import ModelWorker, create_app
    from llava.utils import demo_model_path

    name = args.model_name or get_model_name_from_path(str(args.model_path or demo_model_path()))
    worker = ModelWorker(engine, [name], request_limits(args), args.stream_interval)
    app = create_app(worker, api_keys(args), args.worker_token)
    warn_of_open_port(args.host, api_keys(args))
    connections = ConnectionLimits(args.max_connections)
    if args.no_register:
        serve(app, listener, on_stop=partial(refuse_more, engine), limits=connections)
        return
    address = args.worker_address or local_url(args.host, listener.port)
    registration = Registration(args.controller_address, address, worker.status, args.worker_token)

    async def stop() -> None:
        await refuse_more(engine)
        await registration.stop()

    serve(app, listener, registration.start, stop, connections)


if __name__ == "__main__":
    sys.exit(main())
