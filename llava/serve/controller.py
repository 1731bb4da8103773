"""The controller, `python -m llava.serve.controller`: workers register with it, and it forwards requests to them.

It speaks LLaVA's protocol on both sides, and may itself be registered as a worker of another controller. It keeps
nothing on disk: after a restart it learns its workers from their next heartbeats.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from llava.command import OneLineParser, run_command
from llava.serve.http.addresses import is_loopback
from llava.serve.http.flags import add_server_flags, api_keys
from llava.serve.http.logs import log_to_console, warn_of_open_port
from llava.serve.workers.flags import WORKER_TOKEN_VARIABLE, add_token_flag

PORT = 21001


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line; a wrong one ends the process with exit code 2."""
    parser = OneLineParser(prog="controller", description="Send requests to the workers that register here.")
    add_server_flags(parser, PORT, reads=False)
    add_token_flag(parser)
    parser.add_argument(
        "--dispatch-method",
        choices=("lottery", "shortest_queue"),
        default="shortest_queue",
        help="draw a worker, a fast one more often, or take the one with the shortest queue (default)",
    )
    args = parser.parse_args(argv)
    if not args.worker_token and not is_loopback(args.host):
        parser.error(
            f"--host {args.host} needs --worker-token (or ${WORKER_TOKEN_VARIABLE}), the same as the workers', without"
            " which none may register; for workers on this machine leave --host out"
        )
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until it gets a signal to stop; returns the exit code."""
    args = parse_args(argv)
    return run_command("controller", lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Serves until it gets a signal to stop."""
    from llava.serve.http.limits import ConnectionLimits, RequestLimits
    from llava.serve.http.listening import take_address
    from llava.serve.http.server import serve
    from llava.serve.workers.controller_app import create_app
    from llava.serve.workers.dispatcher import Dispatcher
    from llava.serve.workers.registry import Registry

    log_to_console()
    limits = RequestLimits(max_body=args.max_body_bytes)
    dispatcher, keys = Dispatcher(Registry(args.dispatch_method), args.worker_token), api_keys(args)
    app = create_app(dispatcher, args.worker_token, is_loopback(args.host), keys, limits)
    with take_address(args.host, args.port) as listener:
        warn_of_open_port(args.host, keys)
        connections = ConnectionLimits(args.max_connections)
        serve(app, listener, on_stop=dispatcher.refuse_more, limits=connections)


if __name__ == "__main__":
    sys.exit(main())
