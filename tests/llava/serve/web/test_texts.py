"""What visitors, files and controllers write shows in a browser as it was written; answers with their Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from playwright.sync_api import expect

from llava.serve.engine import ChatEngine
from llava.serve.http.failures import RequestError
from llava.serve.web.backend import EngineBackend
from llava.serve.web.controller_client import ControllerBackend
from llava.serve.web.handlers import Demo
from llava.serve.web.moderation import Moderator
from llava.serve.web.page import PageText
from llava.utils import demo_picture_paths
from tests.llava.serve.openai.serving import QUESTION, Gate, Talker, becomes_idle, served
from tests.llava.serve.web.pages import PHONE, Visitor, needs_chromium, page_of

FILES = [str(path) for path in demo_picture_paths()]
MARKUP = "<b>bold</b> <img src=x onerror=\"document.title='owned'\"> &lt; &amp; <script>document.title='owned'</script>"
TEXTS = {
    "html": MARKUP,
    "markdown": "# Head **x** `a<b` [l](https://elsewhere.example) ![i](https://elsewhere.example/i.png) :smile:",
    "latex": "$$x^2$$ \\(y\\) \\[z\\] ```mermaid",
    "templates": "${7*7} {{7*7}} {7*7} %s \\n",
    "lines": "1. one\n    # four\n\n\n- <i>two</i>",
}
TITLE = "LLaVA with QLIP"

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def url(engine: ChatEngine) -> Iterator[str]:
    class Strict(Moderator):
        async def check(self, text: str) -> None:
            if "shouting" in text:
                raise RequestError(400, "flagged", f"no {text}")

    with page_of(Demo(EngineBackend(engine), Strict("key")), PageText("A notice.", FILES, [QUESTION])) as url:
        yield url


def written(visitor: Visitor, selector: str) -> str:
    """The text of a part, of which nothing was rendered: no elements but the page's own, none of them a link."""
    part = visitor.at(selector).last
    assert part.locator("b, i, img, script, code, pre, a, h1, li, ol, ul, strong, .katex, .mermaid").count() == 0
    assert visitor.page.title() == TITLE
    return part.evaluate("part => part.textContent")


def toast(visitor: Visitor) -> Any:
    return visitor.page.get_by_test_id("toast-text").first


def box(visitor: Visitor) -> Any:
    return visitor.at("#question textarea")


def copy_buttons(visitor: Visitor) -> list[Any]:
    """The buttons that copy a question and its answer; a click renames one for two seconds."""
    buttons = visitor.at("#chat").get_by_label("Copy message")
    expect(buttons).to_have_count(2)
    return buttons.element_handles()


def talks(engine: ChatEngine, monkeypatch: pytest.MonkeyPatch, text: str, failure: Exception | None = None) -> None:
    """Lets the model say a text; what its tokenizer cannot carry would be another text, so it is checked."""
    monkeypatch.setattr(engine, "_generate", engine._generate)  # put back at the end
    Talker(engine, text, failure)


SHOWN = {
    "markdown": ("h3", "Head x a<b [l](https://elsewhere.example) ![i](https://elsewhere.example/i.png) :smile:"),
    "templates": ("p", "${77} {{77}} {7*7} %s \\n"),  # what is between two of the asterisks is emphasised
    "lines": ("ul", "<i>two</i>"),
}
"""An element of each text with Markdown as an answer, and what is in it."""


def answered(visitor: Visitor, selector: str, name: str, reply: str) -> None:
    """Checks that an answer's Markdown was rendered, and that no link, picture or script was made of it."""
    if name not in SHOWN:
        assert written(visitor, selector) == reply
        return
    part = visitor.at(f"{selector} .answer").last
    tag, shown = SHOWN[name]
    expect(part.locator(tag).last).to_contain_text(shown)
    assert part.locator("a, b, i, img, script, .katex, .mermaid").count() == 0
    assert visitor.page.title() == TITLE


def test_questions_show_as_they_were_written_and_answers_with_their_markdown(
    come: Callable[..., Visitor], engine: ChatEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    visitor = come(permissions=["clipboard-read", "clipboard-write"]).sees_a_picture()
    for name, text in TEXTS.items():
        reply = f"{text} {name} done"
        talks(engine, monkeypatch, reply)
        box(visitor).fill(text)
        visitor.at("#ask").click()
        expect(visitor.answer).to_contain_text(f"{name} done")
        assert written(visitor, "#chat .user.message .md") == text
        answered(visitor, "#chat .bot.message .md", name, reply)
        for button, said in zip(copy_buttons(visitor), (text, reply), strict=True):
            button.click()
            visitor.page.wait_for_function(
                "said => navigator.clipboard.readText().then(text => text == said)", arg=said
            )
        visitor.at("#stop").click()
        assert becomes_idle(engine)
        visitor.at("#clear").click()
        expect(visitor.at("#chat .message")).to_have_count(0)


def test_the_copy_buttons_work_without_https(
    come: Callable[..., Visitor], engine: ChatEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    talks(engine, monkeypatch, "if **r** < 0")
    visitor = come().sees_a_picture()
    visitor.page.evaluate("delete Navigator.prototype.clipboard")
    visitor.page.evaluate(
        "addEventListener('copy', event => { window.copied = event.clipboardData.getData('text/plain'); })"
    )
    visitor.ask("AT&T?")
    expect(visitor.answer).to_contain_text("if r < 0")
    for button, said in zip(copy_buttons(visitor), ("AT&T?", "if **r** < 0"), strict=True):
        button.click()
        visitor.page.wait_for_function("said => window.copied == said", arg=said)
    visitor.at("#stop").click()
    assert becomes_idle(engine)


def test_comparisons_show_their_questions_as_they_were_written_and_answers_with_their_markdown(
    come: Callable[..., Visitor], engine: ChatEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    visitor = come().sees_a_picture()
    for name, text in TEXTS.items():
        reply = f"{text} {name} done"
        talks(engine, monkeypatch, reply)
        box(visitor).fill(text)
        visitor.at("#compare").click()
        expect(visitor.at("#side-clip")).to_contain_text(f"{name} done")
        assert written(visitor, "#compare-question h2") == text
        answered(visitor, "#side-clip .side-answer", name, reply)
        visitor.at("#clear").click()
        expect(visitor.at("#compare-card")).to_be_hidden()
        assert becomes_idle(engine)


@pytest.mark.parametrize("text", ["What is <image>?", f"shouting {MARKUP}"], ids=["image token", "moderation"])
def test_a_refused_question_is_named_as_it_was_written_and_stays_in_its_box(
    come: Callable[..., Visitor], text: str
) -> None:
    visitor = come().sees_a_picture()
    visitor.ask(text)
    expect(toast(visitor)).to_contain_text("<image>" if "<image>" in text else MARKUP)
    assert written(visitor, "[data-testid=toast-text]")
    expect(box(visitor)).to_have_value(text)
    expect(visitor.at("#chat .message")).to_have_count(0)


def test_a_question_without_a_picture_stays_in_its_box(come: Callable[..., Visitor]) -> None:
    visitor = come().sees_a_picture()
    visitor.at("#picture").get_by_label("Remove Image").click()
    expect(visitor.at("#seen img")).to_have_count(0)
    visitor.ask("What?")
    expect(toast(visitor)).to_contain_text("There is no picture yet.")
    expect(box(visitor)).to_have_value("What?")


def test_a_question_that_waits_for_no_room_stays_in_its_box(
    come: Callable[..., Visitor], engine: ChatEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.scheduler, "admitted", engine.scheduler.limits.max_waiting)
    visitor = come().sees_a_picture()
    visitor.ask("What?")
    expect(toast(visitor)).to_contain_text("try again in")
    expect(box(visitor)).to_have_value("What?")
    expect(visitor.at("#chat .message")).to_have_count(0)


def test_a_question_leaves_its_box_when_it_is_taken_on_before_any_answer(
    come: Callable[..., Visitor], engine: ChatEngine
) -> None:
    visitor = come().sees_a_picture()
    with Gate(engine):
        visitor.ask("What?")
        expect(visitor.at("#chat .user.message")).to_have_text("What?")
        expect(box(visitor)).to_have_value("")
        visitor.at("#stop").click()
    assert becomes_idle(engine)


@pytest.mark.parametrize(("said", "left"), [("", "What?"), ("a purple", "")])
def test_a_question_returns_to_its_box_if_the_model_fails_before_its_first_text(
    come: Callable[..., Visitor], engine: ChatEngine, monkeypatch: pytest.MonkeyPatch, said: str, left: str
) -> None:
    visitor = come().sees_a_picture()
    talks(engine, monkeypatch, said, RuntimeError("broken"))
    visitor.ask("What?")
    expect(toast(visitor)).to_contain_text("The model failed")
    expect(box(visitor)).to_have_value(left)
    expect(visitor.at("#chat .user.message")).to_have_count(1 if said else 0)


def test_an_error_leaves_the_conversation_in_reach(come: Callable[..., Visitor], engine: ChatEngine) -> None:
    visitor = come(permissions=["clipboard-read", "clipboard-write"]).sees_a_picture().greedy()
    visitor.ask(QUESTION)
    expect(visitor.at("#spent")).to_contain_text("in total")
    visitor.ask("shouting")
    expect(toast(visitor)).to_be_visible()
    expect(visitor.at("#chat").get_by_text("Error", exact=True)).to_be_hidden()
    visitor.at("#chat").get_by_label("Copy message").first.click()  # nothing lies above it


def test_an_answer_that_cannot_be_had_anew_stays(
    come: Callable[..., Visitor], engine: ChatEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    visitor = come().sees_a_picture().greedy()
    visitor.ask(QUESTION)
    expect(visitor.at("#spent")).to_contain_text("in total")
    answer = visitor.answer.inner_text()
    talks(engine, monkeypatch, "", RuntimeError("broken"))
    visitor.at("#regenerate").click()
    expect(toast(visitor)).to_contain_text("The model failed")
    expect(visitor.at("#chat .user.message")).to_have_count(1)
    assert visitor.answer.inner_text() == answer


def test_a_file_s_name_is_never_rendered(come: Callable[..., Visitor], tmp_path: Path) -> None:
    name = "<img src=x onerror=document.title='owned'>.png"
    (tmp_path / name).write_bytes(Path(FILES[1]).read_bytes())
    visitor = come().sees_a_picture()
    visitor.upload(str(tmp_path / name))
    assert visitor.page.title() == TITLE
    (tmp_path / name).write_text("Dear Sir")
    visitor.at("#picture input[type=file]").first.set_input_files(str(tmp_path / name))
    expect(toast(visitor)).to_contain_text("Not a readable image")
    assert visitor.page.title() == TITLE


def test_what_a_controller_says_is_never_rendered(come: Callable[..., Visitor]) -> None:
    app = FastAPI()

    @app.post("/list_models")
    def list_models() -> dict[str, list[str]]:
        return {"models": [MARKUP, "another"]}

    @app.post("/worker_generate_stream")
    def worker_generate_stream() -> JSONResponse:
        return JSONResponse({"text": f"no {MARKUP}", "error_code": 1}, 503)

    with (
        served(app) as address,
        page_of(Demo(ControllerBackend(address, native_size=112)), PageText(examples=FILES), choose_model=True) as page,
    ):
        visitor = come(address=page).sees_a_picture()
        expect(visitor.at("#model input")).to_have_value(MARKUP)
        visitor.at("#model input").click()
        expect(visitor.page.get_by_role("option").first).to_contain_text(MARKUP)
        visitor.page.keyboard.press("Escape")
        visitor.ask("What?")
        expect(toast(visitor)).to_contain_text(MARKUP)
        assert written(visitor, "[data-testid=toast-text]")
        expect(box(visitor)).to_have_value("What?")
        visitor.problems[:] = [said for said in visitor.problems if "503" not in said]
        visitor.page.close()


def test_long_texts_stay_within_the_window(
    come: Callable[..., Visitor], engine: ChatEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    visitor = come().sees_a_picture()
    talks(engine, monkeypatch, "<b>" * 60 + " done")
    visitor.ask("x<" * 200)
    expect(visitor.answer).to_contain_text("done")
    for width, height in ((1400, 900), (1024, 800), PHONE):
        visitor.page.set_viewport_size({"width": width, "height": height})
        assert visitor.overflow() == []
        assert visitor.page.evaluate("document.documentElement.scrollWidth") <= width
    visitor.at("#stop").click()
    assert becomes_idle(engine)
