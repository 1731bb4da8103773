"""Builds the demo's page from the command's flags and serves it."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, redirect_stdout, suppress
from io import StringIO
from urllib.request import getproxies

import gradio as gr
from starlette.middleware import Middleware

from llava.images import DEFAULT_LIMITS
from llava.mm_utils import get_model_name_from_path
from llava.serve.http.addresses import format_host
from llava.serve.http.flags import api_keys
from llava.serve.http.listening import take_address
from llava.serve.loading import DEMO_NOTICE, QLIP_FLAGS, check_model_flags, load_engine
from llava.serve.web.backend import Backend, EngineBackend
from llava.serve.web.chart import embedded_curve
from llava.serve.web.controller_client import ControllerBackend
from llava.serve.web.feedback import FeedbackLog
from llava.serve.web.files import exit_at_sigterm, own_files
from llava.serve.web.first_script import InsertFirstScript
from llava.serve.web.handlers import Demo
from llava.serve.web.moderation import Moderator
from llava.serve.web.page import PageText, build_page
from llava.serve.web.security import LimitBodies, PageHeaders, RefuseMalformedCalls
from llava.serve.web.theme import css, head, theme
from llava.utils import demo_model_path, demo_picture_paths

NO_LINK = "no public link, since Gradio's servers or its program frpc cannot be reached; the page is served without one"
DEMO_QUESTIONS = ("What colour is the ring?", "What shape is the purple object?", "Is there a yellow triangle?")
"""The embedded model answers these correctly about each example picture, in any order in one conversation."""

QUEUE_PERIOD = 0.02
"""Seconds between two looks at the queue of events. With Gradio's own 0.001, and 0.01 for reports of progress, a server
that nobody visits takes 6 % of a core."""


def run(args: argparse.Namespace) -> None:
    """Serves the page until interrupted."""
    with take_address(args.host, args.port) as listener:  # checked before the model is loaded; Gradio binds its own
        port = listener.port
    feedback = None if args.feedback_dir is None else FeedbackLog(args.feedback_dir)
    moderator = Moderator.from_environment("--moderate") if args.moderate else None
    if args.controller_url is None:
        check_model_flags(args)
        if not args.model_path:
            print(DEMO_NOTICE, file=sys.stderr)
    with exit_at_sigterm(), own_files(), open_backend(args) as backend:
        embedded = args.controller_url is None and not args.model_path
        demo = Demo(backend, moderator, feedback, embedded_curve() if embedded else None)
        demo.holders.most = args.max_visitors
        page = build_page(demo, page_text(args), choose_model=args.controller_url is not None)
        with take_address(args.host, port):  # Gradio's message for a busy port names a variable, not the flag
            pass
        serve(page, args.host, port, args.share, concurrency=args.concurrency_count)


@contextmanager
def open_backend(args: argparse.Namespace) -> Iterator[Backend]:
    """Connects to the controller of `--controller-url`, or loads a model here and closes it at the end.

    Raises:
        ValueError: flags contradict each other, or name nothing usable.
    """
    if args.controller_url is None:
        with closing(load_engine(args, switchable=True)) as engine:
            yield EngineBackend(engine, get_model_name_from_path(str(args.model_path or demo_model_path())))
    else:
        local = ("model_path", "model_base", "device", "qlip", *QLIP_FLAGS)
        given = [name for name in local if getattr(args, name) is not None]
        given += [name for name in ("load_8bit", "load_4bit") if getattr(args, name)]
        if given:
            flags = ", ".join("--" + name.replace("_", "-") for name in given)
            raise ValueError(f"--controller-url leaves the model to its workers, so {flags} cannot be given here")
        key = next(iter(api_keys(args)), None)
        reload = args.model_list_mode == "reload"
        yield ControllerBackend(args.controller_url, args.conv_mode, key, reload, args.native_size)


def page_text(args: argparse.Namespace) -> PageText:
    """Chooses the page's texts and examples; the embedded demo model has its own."""
    if args.controller_url is None and not args.model_path:
        notice = DEMO_NOTICE.partition(" For ")[0]
        return PageText(notice, example_pictures(), DEMO_QUESTIONS, heading=not args.embed)
    return PageText("Ask about a picture, and see how it is seen.", example_pictures(), heading=not args.embed)


def example_pictures() -> list[str]:
    """Lists the paths of the embedded demo's pictures, if it is installed."""
    try:
        return list(map(str, demo_picture_paths()))
    except FileNotFoundError:
        return []


@contextmanager
def bypass_proxies(host: str) -> Iterator[None]:
    """Excepts this machine from the environment's or system's proxies: Gradio calls the server that it starts."""
    proxies = getproxies()
    exceptions = ",".join(filter(None, [proxies.get("no"), "localhost", host]))
    changes = {f"{name}_proxy": value for name, value in proxies.items()} | {"no_proxy": exceptions}
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def set_up_queue(page: gr.Blocks, concurrency: int) -> None:
    """Bounds the page's events: so many at a time, and 16 times as many that wait."""
    page.queue(default_concurrency_limit=concurrency, max_size=16 * concurrency)
    queue = page._queue
    queue.sleep_when_free = queue.progress_update_sleep_when_free = QUEUE_PERIOD
    queue.ANAYLTICS_CACHE_FREQUENCY = sys.maxsize  # statistics after each event, 10 to 30 ms, which nobody can see


def serve(
    page: gr.Blocks,
    host: str,
    port: int,
    share: bool = False,
    block: bool = True,
    concurrency: int = 16,
) -> None:
    """Serves the page with system fonts, bounded uploads and no log of visitors; prints its address.

    Args:
        page: from `build_page`.
        host: address to listen on.
        port: where to listen.
        share: make a public link.
        block: wait until interrupted.
        concurrency: most answers at a time.
    """
    set_up_queue(page, concurrency)
    middleware = [Middleware(each) for each in (PageHeaders, LimitBodies, RefuseMalformedCalls, InsertFirstScript)]
    # Gradio's hints name its own flags, and take ten lines where a link fails.
    with redirect_stdout(StringIO()), bypass_proxies(host):
        page.launch(
            server_name=format_host(host),  # Gradio makes its page's URL of it
            server_port=port,
            share=share,
            prevent_thread_lock=True,
            theme=theme(),
            css=css(),
            head=head(),
            max_file_size=DEFAULT_LIMITS.max_bytes,
            app_kwargs={"middleware": middleware},
            run_history=False,
            enable_monitoring=False,  # its routes give statistics of all visitors, and print a key
            ssr_mode=False,
            footer_links=[],
            _frontend=False,  # else Gradio asks for its page, and gives up if a busy machine takes three seconds for it
        )
    print(f"the page is at {page.local_url}", flush=True)
    if page.share_url:
        print(f"and, for a week at most, at {page.share_url}", flush=True)
    elif share:
        print(f"--share: {NO_LINK}", file=sys.stderr, flush=True)
    if block:
        with suppress(KeyboardInterrupt):  # Gradio's own wait then waits for up to 5 s for open connections
            threading.Event().wait()
