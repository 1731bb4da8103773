"""`make docs`: the site builds without a warning, asks no network for anything, and its search works from files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.llava.serve.web.pages import chromium, needs_chromium

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it; a page that the navigation lacks, or a dead link, fails it."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "--quiet", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return folder


@pytest.fixture(scope="module")
def reader() -> Iterator[Page]:
    with chromium() as browser:
        yield browser.new_page()


def test_every_document_is_a_page(site: Path) -> None:
    names = [*ROOT.glob("docs/*.md"), *ROOT.glob("docs/results/*.md"), ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]
    assert [name for name in names if not (site / name.relative_to(ROOT)).with_suffix(".html").is_file()] == []
    assert "make chat" in (site / "index.html").read_text(encoding="utf-8")


def test_a_link_to_a_source_leads_to_its_text(site: Path) -> None:
    assert 'href="qlip/config.py.html"' in (site / "index.html").read_text(encoding="utf-8")
    assert 'href="../qlip/config.py.html"' in (site / "docs" / "COMMANDS.html").read_text(encoding="utf-8")
    assert "QLIPConfig" in (site / "qlip" / "config.py.html").read_text(encoding="utf-8")


def test_a_table_between_marks_is_a_table(site: Path) -> None:
    page = (site / "index.html").read_text(encoding="utf-8")
    assert "<!-- claims: headline -->" in page
    assert "|---|" not in page


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    loads = re.compile(r'<(?:script|img|iframe)\b[^>]*\bsrc="?(?:https?:)?//|<link\b[^>]*\bhref="?(?:https?:)?//')
    assert [file.name for file in site.rglob("*.html") if loads.search(file.read_text(encoding="utf-8"))] == []


@needs_chromium
def test_search_works_without_a_server_or_a_network(site: Path, reader: Page) -> None:
    asked: list[str] = []
    reader.on("request", lambda request: asked.append(request.url))
    reader.goto((site / "index.html").as_uri())
    reader.get_by_role("textbox", name="Search").click()
    reader.keyboard.type("noise floor")
    found = reader.locator(".md-search-result__link").filter(has_text="Noise floor (ours)")
    expect(found).to_have_count(1)
    found.click()
    expect(reader.locator("h1")).to_have_text(re.compile("^Method"))
    assert {url.partition(":")[0] for url in asked} == {"file"}
