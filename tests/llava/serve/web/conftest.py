"""Fixtures for tests of the web demo: an engine on the embedded model, and a browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from gradio_client import Client

from llava.serve.engine import ChatEngine
from llava.serve.web.backend import EngineBackend
from llava.serve.web.handlers import Demo
from tests.llava.serve.openai.serving import loaded
from tests.llava.serve.web.clients import FIRST, NewVisitor, show
from tests.llava.serve.web.pages import Pages, Visitor, arrivals, chromium, page_of


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps Gradio's files of this process apart: a server that ends deletes also what another one shows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        yield


@pytest.fixture(scope="package")
def engine() -> Iterator[ChatEngine]:
    """An engine on the embedded model."""
    with closing(ChatEngine(*loaded())) as engine:
        yield engine


@pytest.fixture(scope="module")
def pages() -> Iterator[Pages]:
    """A browser's pages. Not for the whole session: while it is open, no test can call `asyncio.run`."""
    with chromium() as browser:
        yield Pages(browser)


@pytest.fixture
def come(pages: Pages, url: str) -> Iterator[Callable[..., Visitor]]:
    """Opens the page of the module's `url` for new visitors, and checks their pages at the end."""
    with arrivals(pages, url) as come:
        yield come


@pytest.fixture(scope="package")
def demo(engine: ChatEngine) -> Demo:
    """The page's handlers."""
    return Demo(EngineBackend(engine))


@pytest.fixture(scope="package")
def page_url(demo: Demo) -> Iterator[str]:
    """Address of the demo's page without examples."""
    with page_of(demo) as url:
        yield url


@pytest.fixture(scope="package")
def clients(page_url: str) -> Iterator[list[Client]]:
    """Clients shared by all tests, since closing one takes a second. Not for the whole session: an open one sends
    requests by itself (its heartbeat), which other folders' tests would count as theirs."""
    clients = [Client(page_url, verbose=False, analytics_enabled=False) for _ in range(4)]
    yield clients
    with ThreadPoolExecutor() as pool:
        list(pool.map(Client.close, clients))


@pytest.fixture
def new_visitor(clients: list[Client]) -> NewVisitor:
    """Resets a client's session and opens a picture in it."""
    free = list(clients)

    def come(path: str | None = FIRST) -> Client:
        visitor = free.pop()
        visitor.reset_session()
        if path is not None:
            show(visitor, path)
        return visitor

    return come
