"""Registers a worker with a controller: `python -m llava.serve.register_worker --worker-name http://HOST:PORT`.

For workers that do not register themselves, such as another controller. The controller asks the worker for its status.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from llava.command import OneLineParser, parse_and_run
from llava.serve.http.addresses import machine_address, server_url
from llava.serve.workers.flags import add_token_flag


def make_parser() -> argparse.ArgumentParser:
    """Makes the command line."""
    parser = OneLineParser(prog="register_worker", description="Register a worker with a controller.")
    parser.add_argument(
        "--controller-address", type=server_url, default="http://localhost:21001", help="default: %(default)s"
    )
    parser.add_argument(
        "--worker-name",
        type=machine_address,
        required=True,
        metavar="ADDRESS",
        help="the worker's address, for the controller to use",
    )
    parser.add_argument("--check-heart-beat", action="store_true", help="drop the worker when it sends no heartbeats")
    add_token_flag(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Registers the worker; returns the exit code."""
    return parse_and_run(make_parser(), register, argv)


def register(args: argparse.Namespace) -> None:
    """Asks the controller to register the worker."""
    from llava.serve.workers.calls import register_worker

    register_worker(args.controller_address, args.worker_name, args.check_heart_beat, args.worker_token)
    print(f"registered {args.worker_name}")


if __name__ == "__main__":
    sys.exit(main())
