"""The web demo's page on a real server over loopback, for tests."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from llava.serve.gradio_web_server import serve
from llava.serve.web.handlers import Demo
from llava.serve.web.page import PageText, build_page


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def page_of(demo: Demo, text: PageText | None = None, choose_model: bool = False) -> Iterator[str]:
    """Serves a demo's page; gives its address."""
    page = build_page(demo, text, choose_model)
    serve(page, "127.0.0.1", free_port(), block=False)
    try:
        yield page.local_url
    finally:
        page.close()
