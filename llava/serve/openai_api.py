"""The OpenAI-compatible API: `python -m llava.serve.openai_api`, or `add_openai_routes` beside a server's own routes.

Routes, errors in OpenAI's shape, and the program that serves them. What a chat request means is told in `openai_chat`,
what it may hold in `openai_schema`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence

from llava.command import OneLineParser, integer, run_command
from llava.mm_utils import get_model_name_from_path
from llava.serve.engine import ChatEngine
from llava.serve.engine.params import EngineLimits
from llava.serve.http.connections import ConnectionLimits
from llava.serve.http.flags import add_server_flags, api_keys, request_limits
from llava.serve.http.listening import Listener, take_address
from llava.serve.http.server import serve
from llava.serve.loading import add_model_flags, load_engine
from llava.serve.openai.app import openai_app
from llava.serve.openai.chat import APISettings
from llava.serve.workers.auth import is_loopback
from llava.utils import demo_model_path

DEFAULT_PORT = 8000


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
