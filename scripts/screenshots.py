"""Takes the screenshots of the web page that the documents show: `python -m scripts.screenshots`.

Serves the embedded model's page, asks and compares in the system's Chromium by Playwright, and writes docs/demo.png, a
wide window in light colours, and docs/demo-phone.png, a phone's in dark ones.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from llava.command import OneLineParser, parse_and_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

QUESTIONS = ("What is in the picture?", "How many objects are there?")
COMPARED = "What colour is the ring?"
PATIENCE = 120_000  # milliseconds


@dataclass(frozen=True)
class Shot:
    """One screenshot."""

    name: str
    width: int
    height: int
    scheme: str


SHOTS = (Shot("demo.png", 1400, 900, "light"), Shot("demo-phone.png", 390, 844, "dark"))


@contextmanager
def serve_page() -> Iterator[str]:
    """Serves the embedded model's page, with feedback buttons; returns its address."""
    from contextlib import closing

    from llava.serve.gradio_web_server import parse_args
    from llava.serve.web.chart import embedded_curve
    from llava.serve.web.feedback import FeedbackLog
    from llava.serve.web.handlers import Demo
    from llava.serve.web.launch import open_backend, page_text, serve
    from llava.serve.web.page import build_page

    args = parse_args([])
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder, open_backend(args) as backend:
        page = build_page(Demo(backend, feedback=FeedbackLog(Path(folder)), curve=embedded_curve()), page_text(args))
        serve(page, "127.0.0.1", port, block=False)
        try:
            yield page.local_url
        finally:
            page.close()


def use_page(page: Page, url: str) -> None:
    """Asks the questions, and compares another one."""
    page.goto(url)
    page.locator("#seen img").wait_for()
    page.locator("#settings-card input[type=number]").first.fill("0")
    for number, question in enumerate(QUESTIONS, start=1):
        page.locator("#question textarea").fill(question)
        page.locator("#question textarea").press("Enter")
        page.locator("#chat .bot.message").nth(number - 1).wait_for()
        page.locator("#spent", has_text="in total").wait_for()
        page.locator("#stop:disabled").wait_for()
    page.locator("#question textarea").fill(COMPARED)
    page.locator("#compare").click()
    page.locator("#side-qlip", has_text="in total").wait_for()


def take(browser: Browser, url: str, shot: Shot, folder: Path) -> None:
    """Takes one screenshot."""
    from PIL import Image

    context = browser.new_context(
        viewport={"width": shot.width, "height": shot.height},
        color_scheme="dark" if shot.scheme == "dark" else "light",
    )
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    use_page(page, url)
    page.wait_for_timeout(500)  # transitions
    picture = Image.open(BytesIO(page.screenshot()))
    picture.convert("RGB").save(folder / shot.name, optimize=True)
    print(f"{folder / shot.name}: {(folder / shot.name).stat().st_size / 1024:.0f} KiB")
    context.close()


def run(options: argparse.Namespace) -> None:
    """Takes all screenshots."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise ValueError("there is no Chromium: apt-get install -y chromium")
    with serve_page() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for shot in SHOTS:
            take(browser, url, shot, options.out)
        browser.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="screenshots", description="Take the screenshots of the documents.")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the pictures")
    return parse_and_run(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
