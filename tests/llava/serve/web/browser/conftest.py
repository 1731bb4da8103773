"""Fixtures for tests with a browser: one Chromium, one page of the demo, and visitors of it.

They are for this folder alone: while the browser is open, no test can call `asyncio.run`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from llava.serve.engine import ChatEngine
from llava.serve.http.failures import RequestError
from llava.serve.web.backend import EngineBackend
from llava.serve.web.chart import embedded_curve
from llava.serve.web.feedback import FeedbackLog
from llava.serve.web.handlers import Demo
from llava.serve.web.moderation import Moderator
from llava.serve.web.page import PageText
from tests.llava.serve.openai.serving import Talker
from tests.llava.serve.web.browser.scenes import FILES, QUESTIONS, Held
from tests.llava.serve.web.pages import Pages, Visitor, arrivals, chromium, page_of


class Strict(Moderator):
    """Refuses questions that shout."""

    async def check(self, text: str) -> None:
        if "shouting" in text:
            raise RequestError(400, "flagged", f"no {text}")


@pytest.fixture(scope="package")
def pages() -> Iterator[Pages]:
    """A browser's pages."""
    with chromium() as browser:
        yield Pages(browser)


@pytest.fixture(scope="package")
def served_demo(engine: ChatEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Held]]:
    """The address of a page with all that it can have, and its function that cuts pictures. One for all tests:
    the browser compiles the scripts of each address anew, which takes seconds."""
    votes = FeedbackLog(tmp_path_factory.mktemp("votes"))
    demo = Demo(EngineBackend(engine), Strict("key"), feedback=votes, curve=embedded_curve())
    cut = demo.backend.prepare = Held(demo.backend.prepare)  # type: ignore[method-assign]
    with page_of(demo, PageText("A notice.", FILES, QUESTIONS)) as url:
        yield url, cut


@pytest.fixture(scope="package")
def cut(served_demo: tuple[str, Held]) -> Held:
    """The page's function that cuts pictures."""
    return served_demo[1]


@pytest.fixture(scope="package")
def shared_url(served_demo: tuple[str, Held]) -> str:
    return served_demo[0]


@pytest.fixture(scope="module")
def url(shared_url: str) -> str:
    """Address of the page that visitors come to; a module may have another."""
    return shared_url


@pytest.fixture
def come(pages: Pages, url: str) -> Iterator[Callable[..., Visitor]]:
    """Opens the page of the module's `url` for new visitors, and checks their pages at the end."""
    with arrivals(pages, url) as come:
        yield come


@pytest.fixture(scope="package")
def regular(pages: Pages, shared_url: str) -> Iterator[Visitor]:
    """Somebody who stays on the page from test to test: to load it takes seconds."""
    with arrivals(pages, shared_url) as come:
        yield come().sees_a_picture().greedy()


@pytest.fixture
def visitor(regular: Visitor) -> Iterator[Visitor]:
    """A visitor with the first picture, an empty conversation, greedy answers and settings as they were at first:
    for tests that change no others."""
    regular.begin_anew()
    yield regular
    regular.check()


@pytest.fixture
def talker(engine: ChatEngine) -> Iterator[Talker]:
    """A model that says "a purple ring" and then nothing more until it is stopped."""
    yield Talker(engine, "a purple ring")
    del engine._generate
