"""The OpenAI-compatible server, `python -m llava.serve.openai_api`.

Programs that have a server already add the same routes to it by `llava.serve.openai.app.add_openai_routes`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from llava.command import OneLineParser, integer, run_command
from llava.serve.engine.params import EngineLimits
from llava.serve.http.addresses import url_of
from llava.serve.http.flags import (
    add_engine_flags,
    add_server_flags,
    api_keys,
    engine_limits,
    name_text,
    request_limits,
)
from llava.serve.http.limits import ConnectionLimits
from llava.serve.http.listening import Listener, take_address
from llava.serve.http.logs import log_to_console, warn_of_open_port
from llava.serve.loading import add_model_flags, load_engine

if TYPE_CHECKING:
    from llava.serve.engine import ChatEngine
    from llava.serve.openai.chat import APISettings

DEFAULT_PORT = 8000


def make_parser(kind: type[OneLineParser] = OneLineParser) -> OneLineParser:
    """Makes the command line."""
    parser = kind(prog="openai_api", description="Serve the model in the OpenAI protocol.")
    add_model_flags(parser)
    add_server_flags(parser, DEFAULT_PORT)
    parser.add_argument(
        "--served-model-name",
        nargs="+",
        type=name_text,
        metavar="NAME",
        help="the model's names for clients (default: the name of its folder)",
    )
    most = EngineLimits.max_batch
    parser.add_argument("--max-batch", type=integer(), default=most, help=f"most answers at a time ({most})")
    add_engine_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Serves a model until it gets a signal to stop; returns the exit code."""
    args = make_parser().parse_args(argv)
    return run_command("openai_api", lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Loads the model and serves it until a signal to stop."""
    log_to_console()
    with take_address(args.host, args.port) as listener:
        engine, settings = load(args)
        serve_engine(engine, settings, listener, ConnectionLimits(args.max_connections))


def load(args: argparse.Namespace) -> tuple[ChatEngine, APISettings]:
    """Loads the engine and builds the settings that the flags of `make_parser` give."""
    from llava.mm_utils import get_model_name_from_path
    from llava.serve.openai.chat import APISettings
    from llava.utils import demo_model_path

    names = args.served_model_name or [get_model_name_from_path(str(args.model_path or demo_model_path()))]
    settings = APISettings(tuple(names), request_limits(args), tuple(api_keys(args)))
    return load_engine(args, switchable=True, limits=engine_limits(args, args.max_batch)), settings


def serve_engine(
    engine: ChatEngine, settings: APISettings, listener: Listener, connections: ConnectionLimits | None = None
) -> None:
    """Serves an engine until a signal to stop, lets its answers end, and closes it."""
    from llava.serve.http.server import refuse_more, serve
    from llava.serve.openai.app import openai_app

    async def announce() -> None:
        address = f"{url_of(listener.host, listener.port)}/v1"
        print(f"{', '.join(settings.model_names)} at {address}", file=sys.stderr, flush=True)
        warn_of_open_port(listener.host, settings.api_keys)

    try:
        app, stop = openai_app(engine, settings), partial(refuse_more, engine)
        serve(app, listener, on_start=announce, on_stop=stop, limits=connections)
    finally:
        engine.close()


if __name__ == "__main__":
    sys.exit(main())
