"""The web demo's page on a real server over loopback, and visitors with a real browser, for tests."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

from llava.serve.web.handlers import Demo
from llava.serve.web.launch import serve
from llava.serve.web.page import PageText, build_page
from tests.llava.serve.programs import free_port

CHROMIUM = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "chromium-browser"))), None)
"""The browser: where it is packaged without windows, that one, which takes a sixth less time."""
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
DEADLINE = 120_000  # milliseconds; a test that waits longer has failed
DESKTOP, PHONE = (1440, 900), (390, 844)

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"), reason="no Chromium: apt-get install -y chromium"
)


@contextmanager
def page_of(demo: Demo, text: PageText | None = None, choose_model: bool = False, **options: Any) -> Iterator[str]:
    """Serves a demo's page; gives its address."""
    page = build_page(demo, text, choose_model)
    serve(page, "127.0.0.1", free_port(), block=False, **options)
    try:
        yield page.local_url
    finally:
        page.close()


@contextmanager
def chromium() -> Iterator[Browser]:
    """Starts the browser."""
    assert CHROMIUM, "no Chromium on a CI machine: apt-get install -y chromium"
    expect.set_options(timeout=DEADLINE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def host_of(request: Request) -> str:
    return re.sub(r"^(\w+:[^:/,]*(//[^:/]+)?).*", r"\1", request.url[:200])


class Visitor:
    """Somebody before a browser, with a session of their own."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.problems: list[str] = []
        self.expected: tuple[str, ...] = ()  # beginnings of problems that a test causes, which may come late
        self.hosts: set[str] = set()
        self.heard: dict[Any, Callable[[Any], None]] = {
            "console": lambda said: self.problems.append(said.text) if said.type == "error" else None,
            "pageerror": lambda error: self.problems.append(str(error)),
            "request": lambda request: self.hosts.add(host_of(request)),
            "requestfailed": lambda request: self.blocked(request) if request.failure == "csp" else None,
        }
        for event, note in self.heard.items():
            page.on(event, note)
        page.goto(url)

    def leave(self) -> None:
        """Ends the visit. The page is blank then, without what the visit stored, and free for another visitor."""
        for event, note in self.heard.items():
            self.page.remove_listener(event, note)
        if not self.page.is_closed():
            self.page.evaluate("() => { localStorage.clear(); sessionStorage.clear(); }")
            self.page.context.clear_cookies()
            self.page.goto("about:blank")

    def blocked(self, request: Request) -> None:
        """Strikes out a request that the browser was told not to make."""
        self.hosts.discard(host_of(request))

    def at(self, selector: str) -> Any:
        return self.page.locator(selector)

    def sees_a_picture(self) -> Visitor:
        expect(self.at("#seen img")).to_be_visible()
        expect(self.at("#meter")).to_contain_text("visual token")
        return self

    @property
    def view(self) -> str | None:
        """Address of the drawing of what the model sees."""
        return self.at("#seen img").get_attribute("src")

    @property
    def tokens(self) -> int:
        return int(self.at("#meter strong").inner_text().replace(",", ""))

    def upload(self, path: str) -> None:
        before = self.view
        self.at("#picture input[type=file]").first.set_input_files(path)
        expect(self.at("#seen img")).not_to_have_attribute("src", before or "")

    @property
    def toast(self) -> Any:
        """The messages that are shown; one of them is closed by a click."""
        return self.page.get_by_test_id("toast-body")

    def close_toasts(self) -> None:
        for button in self.page.get_by_test_id("toast-close").all():
            button.click()
        expect(self.toast).to_have_count(0)

    def add(self, paths: list[str]) -> None:
        """Adds pictures to the next question."""
        with self.page.expect_file_chooser() as chooser:
            self.at("#add-picture").click()
        chooser.value.set_files(paths)

    def ask(self, question: str) -> None:
        self.at("#question textarea").fill(question)
        self.at("#question textarea").press("Enter")

    @property
    def answer(self) -> Any:
        return self.at("#chat .bot.message").last

    def has_been_answered(self, text: str) -> None:
        expect(self.answer).to_have_text(text)
        expect(self.at("#spent")).to_contain_text("in total")

    def greedy(self) -> Visitor:
        self.at("#settings-card input[type=number]").first.fill("0")
        return self

    def overflow(self) -> list[str]:
        """What sticks out of the window to the right."""
        return self.page.evaluate(
            """() => [...document.querySelectorAll('main *')]
                .filter(e => e.checkVisibility() && e.getBoundingClientRect().right > innerWidth + 1)
                .filter(e => !e.closest('.sr-only, [aria-hidden]')).map(e => e.outerHTML.slice(0, 120))"""
        )


class Pages:
    """A browser's pages. A visitor gets one that another has left: it has read and compiled the page's scripts."""

    def __init__(self, browser: Browser) -> None:
        self.browser, self.free = browser, list[tuple[dict[str, Any], Page]]()

    def take(self, size: tuple[int, int], options: dict[str, Any]) -> Page:
        """Gives a blank page of a context with these options, in which no other visitor is."""
        fitting = [entry for entry in self.free if entry[0] == options]
        if fitting:
            self.free.remove(fitting[0])
            page = fitting[0][1]
        else:
            page = self.browser.new_context(**options).new_page()
            page.set_default_timeout(DEADLINE)
        page.set_viewport_size({"width": size[0], "height": size[1]})
        return page

    def put_back(self, page: Page, options: dict[str, Any]) -> None:
        """Keeps a page for another visitor, unless it was closed."""
        if page.is_closed():
            page.context.close()
        else:
            self.free.append((options, page))


@contextmanager
def arrivals(pages: Pages, url: str) -> Iterator[Callable[..., Visitor]]:
    """Lets visitors come, and fails the test where their page has a problem or calls another host."""
    visitors: list[tuple[Visitor, dict[str, Any]]] = []

    def arrive(size: tuple[int, int] = DESKTOP, address: str = url, **options: Any) -> Visitor:
        visitors.append((Visitor(pages.take(size, options), address), options))
        return visitors[-1][0]

    yield arrive
    for visitor, options in visitors:
        visitor.leave()
        pages.put_back(visitor.page, options)
        problems = [said for said in visitor.problems if not said.startswith(visitor.expected)]
        assert problems == [], problems
        assert visitor.hosts <= {"http://127.0.0.1", "data:image", "blob:http"}, visitor.hosts
