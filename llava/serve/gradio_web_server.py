"""Web demo: `python -m llava.serve.gradio_web_server`, a picture, what the model sees of it, and a conversation.

Turns flags into a page: with a model in this process, or, given `--controller-url`, with the models that a controller's
workers serve. What the page does is the matter of `llava.serve.web`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

import gradio as gr
from starlette.middleware import Middleware

from llava.command import OneLineParser, integer, run_command
from llava.images import DEFAULT_LIMITS
from llava.serve.http.addresses import server_url
from llava.serve.http.flags import API_KEY_VARIABLE, api_keys, key_text
from llava.serve.http.listening import port_number, take_address
from llava.serve.loading import DEMO_NOTICE, add_model_flags, check_model_flags, load_engine
from llava.serve.web.backend import Backend, EngineBackend
from llava.serve.web.controller_client import NATIVE_SIZE, ControllerBackend
from llava.serve.web.handlers import Demo
from llava.serve.web.moderation import Moderator
from llava.serve.web.page import PageText, build_page
from llava.serve.web.security import PageHeaders, RefuseMalformedCalls
from llava.serve.web.theme import css, theme
from llava.utils import demo_picture_path

MAX_SESSIONS = 256  # visitors whose pictures are kept; the one who has been idle longest goes first
DEMO_QUESTIONS = ("What is in the picture?", "How many objects are there?", "Is there a blue square?")


def example_pictures() -> list[str]:
    """Returns the paths of the embedded demo's pictures, if it has any."""
    try:
        return sorted(map(str, demo_picture_path().parent.glob("*.png")))
    except FileNotFoundError:
        return []


def serve(
    page: gr.Blocks, host: str, port: int, share: bool = False, block: bool = True, concurrency: int = 16
) -> None:
    """Serves the page with the visitor's own fonts, bounded uploads and no record of what is asked."""
    page.queue(default_concurrency_limit=concurrency, max_size=16 * concurrency)
    page.launch(
        server_name=host,
        server_port=port,
        share=share,
        prevent_thread_lock=not block,
        theme=theme(),
        css=css(),
        max_file_size=DEFAULT_LIMITS.max_bytes,
        state_session_capacity=MAX_SESSIONS,
        app_kwargs={"middleware": [Middleware(PageHeaders), Middleware(RefuseMalformedCalls)]},
        run_history=False,
        ssr_mode=False,
        footer_links=[],
    )


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line; a wrong one ends the process with exit code 2."""
    parser = OneLineParser(prog="gradio_web_server", description="Chat about pictures in a browser.")
    add_model_flags(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=port_number, default=7860, help="port; 0 is any free one (default: 7860)")
    parser.add_argument("--share", action="store_true", help="make a public link through Gradio's servers")
    parser.add_argument(
        "--controller-url", type=server_url, metavar="URL", help="ask a controller's workers; loads no model here"
    )
    parser.add_argument(
        "--api-key", action="append", type=key_text, metavar="KEY", help=f"the controller's (or ${API_KEY_VARIABLE})"
    )
    parser.add_argument(
        "--native-size",
        type=integer(),
        default=NATIVE_SIZE,
        metavar="PIXELS",
        help=f"side of the pictures that the workers' towers were trained on, to draw by (default: {NATIVE_SIZE})",
    )
    parser.add_argument(
        "--model-list-mode",
        choices=("once", "reload"),
        default="once",
        help="ask the controller for its models once, or for each visitor (default: once)",
    )
    parser.add_argument(
        "--concurrency-count", type=integer(), default=16, help="most answers that go on at a time (default: 16)"
    )
    parser.add_argument("--moderate", action="store_true", help="have OpenAI's moderation check each question first")
    parser.add_argument("--embed", action="store_true", help="leave the heading out, for a page inside another")
    return parser.parse_args(argv)


@contextmanager
def backend_of(args: argparse.Namespace) -> Iterator[Backend]:
    """Gives what the flags name, the models of a controller or one in this process, which is closed afterwards.

    Raises:
        ValueError: flags contradict each other, or name nothing usable.
    """
    if args.controller_url is None:
        with closing(load_engine(args, switchable=True)) as engine:
            yield EngineBackend(engine)
    else:
        local = ("model_path", "model_base", "device", "qlip", "alpha", "max_tokens", "image_size")
        given = [name for name in local if getattr(args, name) is not None]
        given += [name for name in ("load_8bit", "load_4bit") if getattr(args, name)]
        if given:
            flags = ", ".join("--" + name.replace("_", "-") for name in given)
            raise ValueError(f"--controller-url leaves the model to its workers, so {flags} cannot be given here")
        key = next(iter(api_keys(args)), None)
        reload = args.model_list_mode == "reload"
        yield ControllerBackend(args.controller_url, args.conv_mode, key, reload, args.native_size)


def page_text(args: argparse.Namespace) -> PageText:
    """Returns what the page says, by what it is about."""
    if args.controller_url is None and not args.model_path:
        notice = DEMO_NOTICE.partition(" For ")[0]
        return PageText(notice, example_pictures(), DEMO_QUESTIONS, heading=not args.embed)
    return PageText("Ask about a picture, and see how it is seen.", example_pictures(), heading=not args.embed)


def run(args: argparse.Namespace) -> None:
    """Serves the page until interrupted."""
    with take_address(args.host, args.port) as listener:  # looked at before the model is loaded; Gradio takes its own
        port = listener.port
    moderator = Moderator.from_environment("--moderate") if args.moderate else None
    if args.controller_url is None:
        check_model_flags(args)
        if not args.model_path:
            print(DEMO_NOTICE, file=sys.stderr)
    with backend_of(args) as backend:
        page = build_page(Demo(backend, moderator), page_text(args), choose_model=args.controller_url is not None)
        with take_address(args.host, port):  # Gradio's own words for a busy port name a variable
            pass
        serve(page, args.host, port, args.share, concurrency=args.concurrency_count)


def main(argv: Sequence[str] | None = None) -> int:
    """Loads the model, if any, and serves the page until interrupted; returns the exit code."""
    args = parse_args(argv)
    return run_command("gradio_web_server", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
