"""Registers a worker by hand: `python -m llava.serve.register_worker --worker-name http://HOST:PORT`.

For workers that do not register by themselves, among them other controllers. The controller asks the worker for its
status.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import httpx

from llava.command import OneLineParser, run_command
from llava.serve.http.auth import bearer_header
from llava.serve.workers.auth import add_token_flag, machine_address, server_url
from llava.serve.workers.heartbeat import TIMEOUT, not_answered


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line; a wrong one ends the process with exit code 2."""
    parser = OneLineParser(prog="register_worker", description="Register a worker at a controller.")
    parser.add_argument(
        "--controller-address", type=server_url, default="http://localhost:21001", help="default: %(default)s"
    )
    parser.add_argument(
        "--worker-name",
        type=machine_address,
        required=True,
        metavar="ADDRESS",
        help="as the controller reaches the worker",
    )
    parser.add_argument("--check-heart-beat", action="store_true", help="drop the worker when it sends no heartbeats")
    add_token_flag(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Registers the worker and returns the exit code."""
    args = parse_args(argv)
    return run_command("register_worker", lambda: register(args))


def register(args: argparse.Namespace) -> None:
    """Asks the controller to register the worker.

    Raises:
        ConnectionError: nobody answers there, or the controller refuses.
    """
    headers = bearer_header(args.worker_token)
    request = {"worker_name": args.worker_name, "check_heart_beat": args.check_heart_beat, "worker_status": None}
    url = args.controller_address + "/register_worker"
    try:  # the controller asks the worker in the meantime
        httpx.post(url, json=request, headers=headers, timeout=3 * TIMEOUT, trust_env=False).raise_for_status()
    except httpx.HTTPError as error:
        raise not_answered(error, args.controller_address) from None
    print(f"registered {args.worker_name}")


if __name__ == "__main__":
    sys.exit(main())
