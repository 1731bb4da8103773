"""Registers a worker by hand: `python -m llava.serve.register_worker --worker-name http://HOST:PORT`.

For workers that do not register by themselves, among them other controllers. The controller asks the worker for its
status.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import httpx

from llava.command import OneLineParser
from llava.serve.http import bearer_header
from llava.serve.registration import TIMEOUT, explained
from llava.serve.trust import add_token_flag, plain


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line; a wrong one ends the process with exit code 2."""
    parser = OneLineParser(prog="register_worker", description="Register a worker at a controller.")
    parser.add_argument(
        "--controller-address", type=plain, default="http://localhost:21001", help="default: %(default)s"
    )
    parser.add_argument(
        "--worker-name", type=plain, required=True, metavar="ADDRESS", help="as the controller reaches the worker"
    )
    parser.add_argument("--check-heart-beat", action="store_true", help="drop the worker when it sends no heartbeats")
    add_token_flag(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Registers the worker and returns the exit code."""
    args = parse_args(argv)
    headers = bearer_header(args.worker_token)
    request = {"worker_name": args.worker_name, "check_heart_beat": args.check_heart_beat, "worker_status": None}
    url = args.controller_address + "/register_worker"
    try:  # the controller asks the worker in the meantime
        httpx.post(url, json=request, headers=headers, timeout=3 * TIMEOUT, trust_env=False).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        print(f"register_worker: error: {explained(error)}", file=sys.stderr)
        return 1
    print(f"registered {args.worker_name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
