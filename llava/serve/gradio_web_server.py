"""Web demo: `python -m llava.serve.gradio_web_server`, to chat about a picture in a browser.

Reads the flags. The page uses a model in this process or, given `--controller-url`, the models of a controller's
workers; `llava.serve.web` builds and serves it, and is imported after the flags have been read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.command import OneLineParser, integer, run_command
from llava.serve.http.addresses import server_url
from llava.serve.http.flags import API_KEY_VARIABLE, key_text
from llava.serve.http.listening import port_number
from llava.serve.loading import add_model_flags
from llava.serve.web.clip_sizes import NATIVE_SIZE
from llava.serve.web.typings import skip_typings


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line; exits with code 2 on a wrong flag."""
    parser = OneLineParser(prog="gradio_web_server", description="Chat about pictures in a browser.")
    add_model_flags(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=port_number, default=7860, help="port; 0 is any free one (default: 7860)")
    parser.add_argument("--share", action="store_true", help="make a public link through Gradio's servers")
    parser.add_argument(
        "--controller-url", type=server_url, metavar="URL", help="use a controller's workers and load no model here"
    )
    parser.add_argument(
        "--api-key", action="append", type=key_text, metavar="KEY", help=f"the controller's (or ${API_KEY_VARIABLE})"
    )
    parser.add_argument(
        "--native-size",
        type=integer(),
        default=NATIVE_SIZE,
        metavar="PIXELS",
        help=f"training image size of the workers' vision towers, for drawings (default: {NATIVE_SIZE})",
    )
    parser.add_argument(
        "--model-list-mode",
        choices=("once", "reload"),
        default="once",
        help="ask the controller for its models once, or for each visitor (default: once)",
    )
    parser.add_argument(
        "--concurrency-count", type=integer(), default=16, help="most answers generated at a time (default: 16)"
    )
    parser.add_argument(
        "--max-visitors",
        type=integer(),
        default=64,
        help="most visitors whose pictures are kept, up to 190 MB each; the one idle longest is dropped (default: 64)",
    )
    parser.add_argument("--moderate", action="store_true", help="check each question with OpenAI's moderation")
    parser.add_argument(
        "--feedback-dir",
        type=Path,
        metavar="DIR",
        help="show feedback buttons; append votes with their conversations to files in DIR, in LLaVA's format",
    )
    parser.add_argument("--embed", action="store_true", help="leave the heading out, for embedding in another page")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Builds the page and serves it until interrupted."""
    with skip_typings():
        from llava.serve.web import launch

    launch.run(args)


def main(argv: Sequence[str] | None = None) -> int:
    """Loads the model, if any, serves the page until interrupted, and returns the exit code."""
    args = parse_args(argv)
    return run_command("gradio_web_server", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
