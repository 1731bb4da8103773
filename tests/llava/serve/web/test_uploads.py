"""Uploaded files: only pictures within the limits, and only files that were uploaded."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest
from gradio_client import Client
from PIL import Image

from llava.serve.engine import ChatEngine
from llava.serve.web.backend import AnswerPiece, EngineBackend, Query
from llava.serve.web.handlers import Demo
from llava.serve.web.session import MAX_PIXELS, Session, open_upload
from llava.serve.web.views import NO_PICTURE
from tests.llava.serve.openai.serving import picture
from tests.llava.serve.web.clients import (
    FIRST,
    QUESTION,
    NewVisitor,
    ask,
    controls,
    refused,
    request,
    show,
)


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The toasts that tell of pictures that cannot be used."""
    told: list[str] = []
    monkeypatch.setattr(gr, "Warning", told.append)
    return told


def opened(visitor: Client, path: Path) -> tuple[Any, ...]:
    """The picture's place, the view and its cost after an upload."""
    place, seen, cost, *_ = show(visitor, str(path))
    return place, seen, cost


NOTHING = (None, None, NO_PICTURE)


@pytest.mark.parametrize("content", [b"Dear Sir", b"", b"\x89PNG\r\n\x1a\n" + bytes(99), b"GIF89a" + b"\xff" * 60])
def test_a_file_that_is_no_picture_is_refused_without_its_path(
    new_visitor: NewVisitor, tmp_path: Path, warnings: list[str], content: bytes
) -> None:
    (tmp_path / "letter.png").write_bytes(content)
    visitor = new_visitor(None)
    assert opened(visitor, tmp_path / "letter.png") == NOTHING
    (told,) = warnings
    assert told.startswith("This picture cannot be used: Not a readable image")
    assert told.endswith("Choose another picture.") and "letter" not in told
    assert "There is no picture yet" in refused(visitor, "/ask", QUESTION, *controls())


@pytest.mark.parametrize("size", [(1, 1), (20000, 10), (6000, 60)])
def test_a_picture_of_impossible_shape_is_refused(
    new_visitor: NewVisitor, tmp_path: Path, warnings: list[str], size: tuple[int, int]
) -> None:
    Image.new("L", size).save(tmp_path / "odd.png")
    assert opened(new_visitor(None), tmp_path / "odd.png") == NOTHING
    assert f"{size[0]} × {size[1]}" in warnings[0]


def test_a_change_that_a_browser_tells_twice_is_one(
    new_visitor: NewVisitor, tmp_path: Path, warnings: list[str]
) -> None:
    (tmp_path / "letter.png").write_bytes(b"Dear Sir")
    visitor = new_visitor()
    ask(visitor)
    show(visitor, FIRST)
    assert len(ask(visitor, "Why?")[0]) == 3  # the conversation goes on
    for _ in range(2):
        place, *others = opened(visitor, tmp_path / "letter.png")
        # The picture of before is put back, the rest stays.
        assert Path(place).name == Path(FIRST).name and all(each["__type__"] == "update" for each in others)
    assert len(warnings) == 1
    show(visitor, FIRST)  # as a browser reports that it is back
    assert len(ask(visitor, "And now?")[0]) == 5


@pytest.mark.parametrize("meta", [{}, {"meta": {"_type": "gradio.FileData"}}])
def test_a_request_cannot_open_a_file_that_was_not_uploaded(
    page_url: str, warnings: list[str], meta: dict[str, Any]
) -> None:
    calls = f"{page_url}gradio_api/call/open_picture"
    call = httpx.post(calls, json={"data": [{"path": FIRST, **meta}, *controls()]}).json()
    events = httpx.get(f"{calls}/{call['event_id']}").text
    assert "event: error" in events or [*warnings] == [
        "This picture cannot be used: It was not uploaded. Choose another picture."
    ]
    assert "image.webp" not in events


def test_a_huge_picture_is_kept_at_a_size_that_memory_bears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava.serve.web.session.get_upload_folder", lambda: str(tmp_path))
    Image.new("RGB", (6000, 3000), "teal").save(tmp_path / "huge.png")
    kept = open_upload({"path": str(tmp_path / "huge.png")})
    assert 0.99 * MAX_PIXELS < kept.width * kept.height <= MAX_PIXELS
    assert abs(kept.width / kept.height - 2) < 0.01


@pytest.fixture
def upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Gradio's description of an uploaded picture."""
    monkeypatch.setattr("llava.serve.web.session.get_upload_folder", lambda: str(tmp_path))
    return {"path": str(shutil.copy(FIRST, tmp_path))}


def test_a_picture_reported_again_while_it_is_opened_clears_no_conversation(
    engine: ChatEngine, upload: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    demo, opening, go_on = Demo(EngineBackend(engine)), threading.Event(), threading.Event()
    prepare = demo.backend.prepare

    def prepare_slowly(*arguments: Any) -> Any:
        opening.set()
        assert go_on.wait(600)
        return prepare(*arguments)

    monkeypatch.setattr(demo.backend, "prepare", prepare_slowly)

    async def report_twice() -> None:
        first = asyncio.create_task(demo.open_picture(request("a"), Session(), None, upload, *controls()))
        assert await asyncio.to_thread(opening.wait, 600)
        assert await demo.open_picture(request("a"), Session(), None, upload, *controls()) == (gr.skip(),) * 7
        go_on.set()
        session = (await first)[1]
        assert session.source == upload["path"]
        assert await demo.open_picture(request("a"), session, None, upload, *controls()) == (gr.skip(),) * 7
        other = await demo.open_picture(request("b"), Session(), None, upload, *controls())
        assert other[1].source == upload["path"]

    asyncio.run(report_twice())


@pytest.mark.parametrize("upload_is_taken", [True, False], ids=["a picture", "no picture"])
def test_whatever_a_browser_shows_last_of_an_ended_run_is_what_the_new_picture_shows(
    engine: ChatEngine, upload: dict[str, Any], upload_is_taken: bool
) -> None:
    """Gradio sends a run's last step once more when it ends, and the browser may show it after the picture's reply."""
    demo, session = Demo(EngineBackend(engine)), Session(picture(), "before.png").with_answer("One?", "a ring")
    demo.backend.ask = never_ending  # type: ignore[method-assign]

    async def open_meanwhile() -> tuple[Any, Any, Any, Any]:
        runs = [demo.ask(request("a"), session, None, QUESTION, *controls())]
        runs.append(demo.compare(request("a"), session, None, QUESTION, *controls()))
        for run in runs:
            await anext(run)
        running = [asyncio.create_task(collect(run)) for run in runs]
        file = upload if upload_is_taken else None
        opened = await demo.open_picture(request("a"), session, None, file, *controls())
        return opened, *[steps[-1] for steps in await asyncio.gather(*running)], len(demo.runs)

    (*_, chat, spent, panel), asked, compared, left = asyncio.run(open_meanwhile())
    assert asked[1:3] == (chat, spent) and chat == []
    assert compared[0] == panel == gr.update(visible=False)
    assert left == 0


async def never_ending(query: Query) -> AsyncGenerator[AnswerPiece, None]:
    yield AnswerPiece("a ring")
    await asyncio.Event().wait()


async def collect(steps: AsyncGenerator[Any, None]) -> list[Any]:
    return [step async for step in steps]


def test_a_drawing_of_the_picture_before_does_not_replace_the_new_ones(
    engine: ChatEngine, upload: dict[str, Any]
) -> None:
    demo, before = Demo(EngineBackend(engine)), Session(picture(), "before.png")
    drawn = demo.redraw(request("a"), before, *controls())
    assert gr.skip() not in drawn
    opened = asyncio.run(demo.open_picture(request("a"), before, None, upload, *controls()))
    assert demo.redraw(request("a"), before, *controls()) == (gr.skip(), gr.skip())
    assert gr.skip() not in demo.redraw(request("a"), opened[1], *controls())


def test_a_picture_whose_drawing_failed_may_be_opened_again(engine: ChatEngine, upload: dict[str, Any]) -> None:
    demo = Demo(EngineBackend(engine))
    with pytest.raises(gr.Error):
        asyncio.run(demo.open_picture(request("a"), Session(), None, upload, *controls(mode="neither")))
    opened = asyncio.run(demo.open_picture(request("a"), Session(), None, upload, *controls()))
    assert opened[1].source == upload["path"]
