"""The page's loops of animation frames: those that Gradio forgets are slowed, and opening pictures adds none."""

from __future__ import annotations

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from llava.serve.web.first_script import InsertFirstScript
from tests.llava.serve.web.clients import FIRST, SECOND
from tests.llava.serve.web.pages import DEADLINE, Pages, Visitor, needs_chromium

COUNT = """(() => {
    const frame = window.requestAnimationFrame, timeout = window.setTimeout;
    let frames = 0, pauses = 0;
    window.requestAnimationFrame = (callback) => { frames++; return frame.call(window, callback); };
    window.setTimeout = (callback, delay, ...rest) => {
        if (delay === 100) pauses++;
        return timeout.call(window, callback, delay, ...rest);
    };
    setInterval(() => { window.lastSecond = { frames, pauses }; frames = pauses = 0; }, 1000);
})()"""


@needs_chromium
def test_a_page_asks_for_few_frames_however_many_pictures_were_opened(pages: Pages, page_url: str) -> None:
    """One loop of Gradio's is left, which asks 60 times a second; it gets a frame ten times a second."""
    page = pages.browser.new_context().new_page()
    page.set_default_timeout(DEADLINE)
    page.add_init_script(COUNT)
    visitor = Visitor(page, page_url)
    visitor.at("#picture input[type=file]").first.set_input_files(FIRST)
    for path in (SECOND, FIRST):
        visitor.sees_a_picture().upload(path)
    page.wait_for_function("lastSecond.frames < 10 && lastSecond.pauses > 0 && lastSecond.pauses < 20")
    page.context.close()


def test_the_script_runs_before_gradios_modules(page_url: str) -> None:
    reply = httpx.get(page_url)
    assert "charset=utf-8" in reply.headers["content-type"]
    assert reply.text.index("window.requestAnimationFrame =") < reply.text.index("gradio_config")
    assert reply.text.rstrip().endswith("</html>")
    assert "content-length" not in httpx.head(page_url).headers  # it would be that of another document


@pytest.mark.parametrize(
    "reply",
    [
        HTMLResponse("<html><head></head>another document</html>"),
        PlainTextResponse("<head> window.gradio_config"),
        Response(status_code=204),
    ],
)
def test_other_replies_are_left_alone(reply: Response) -> None:
    app = Starlette(routes=[Route("/", lambda request: reply)])
    got = TestClient(InsertFirstScript(app)).get("/")
    assert (got.status_code, got.content, got.headers.get("content-type")) == (
        reply.status_code,
        reply.body,
        reply.headers.get("content-type"),
    )
