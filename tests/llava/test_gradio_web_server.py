"""The web demo as its visitors meet it: a client talks to the page over the loopback."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from llava.mm_utils import get_model_name_from_path
from llava.model.builder import load_pretrained_model
from llava.serve.engine import ChatEngine, Sampling
from llava.serve.gradio_web_server import (
    Demo,
    Session,
    build_page,
    caption,
    chat_messages,
    cut,
    main,
    prompt_conversation,
    serve,
)
from llava.serve.images import load_image
from tests.llava.checkpoints import make_llava_checkpoint

ALPHA, BUDGET = 0.5, 40
LENGTH = 6  # longest answer, in tokens


def load(folder: Path, qlip: Any) -> ChatEngine:
    path = str(make_llava_checkpoint(folder, qlip=qlip))
    return ChatEngine(*load_pretrained_model(path, None, get_model_name_from_path(path), device="cpu"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return Demo(load(tmp_path_factory.mktemp("qlip"), qlip={"criterion": "gradient", "coarsest": "any"}))


@pytest.fixture(scope="module")
def url(demo: Demo) -> Iterator[str]:
    page = build_page(demo)
    serve(page, "127.0.0.1", free_port(), block=False)
    yield page.local_url
    page.close()


@pytest.fixture
def visitor(url: str) -> Iterator[Client]:
    client = Client(url, verbose=False, analytics_enabled=False)
    yield client
    client.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A noisy picture of 8 x 6 cells and a flat one of 4 x 4."""
    folder = tmp_path_factory.mktemp("pictures")
    torch.manual_seed(0)
    noise = Image.effect_noise((112, 84), 90).convert("RGB")
    noise.save(folder / "noise.png")
    Image.new("RGB", (56, 56), "teal").save(folder / "flat.png")
    return str(folder / "noise.png"), str(folder / "flat.png")


def show(visitor: Client, path: str, alpha: float = ALPHA, budget: int = BUDGET) -> tuple[Any, ...]:
    return visitor.predict(handle_file(path), alpha, budget, api_name="/open_picture")


def ask(visitor: Client, question: str, budget: int = BUDGET, length: int = LENGTH) -> list[list[tuple[str, str]]]:
    """The conversation after each step of the greedy answer, as (role, text)."""
    job = visitor.submit(question, ALPHA, budget, 0, length, api_name="/ask")
    job.result()
    return [[(entry["role"], text_of(entry)) for entry in chat] for chat, _ in job.outputs()]


def text_of(entry: dict[str, Any]) -> str:
    content = entry["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def alone(demo: Demo, path: str, question: str, budget: int = BUDGET, length: int = LENGTH) -> str:
    """The engine's own greedy answer to one question about one picture."""
    engine, tower = demo.engine, demo.tower
    tower.settings = replace(tower.settings, alpha=ALPHA, max_tokens=budget)
    engine.image_processor = tower.image_processor
    conversation = engine.new_conversation()
    conversation.append_message(conversation.roles[0], engine.first_question(question, 1))
    conversation.append_message(conversation.roles[1], None)
    sampling = Sampling(temperature=0, max_new_tokens=length)
    return "".join(engine.reply(conversation, [load_image(path)], sampling)).strip()


def test_a_new_picture_is_shown_as_the_model_sees_it(visitor: Client, pictures: tuple[str, str]) -> None:
    seen, cost, chat = show(visitor, pictures[0])
    assert Image.open(seen).size == (8 * 48 + 1, 6 * 48 + 1)
    assert cost == "**39 visual tokens**; the uniform grid has 48."  # 12 roots, and 3 more per split
    assert chat == []


@pytest.mark.parametrize(
    ("alpha", "budget", "tokens"),
    [(0, 48, "48 visual tokens"), (0, 20, "18 visual tokens"), (0.1, 1, "1 visual token")],
)
def test_moving_a_slider_redraws_and_recounts(
    visitor: Client, demo: Demo, pictures: tuple[str, str], alpha: float, budget: int, tokens: str
) -> None:
    show(visitor, pictures[0])
    with demo.lock:  # as while the model answers somebody else
        seen, cost = visitor.predict(alpha, budget, api_name="/look")
    assert Image.open(seen).getbbox() is not None
    assert cost.startswith(f"**{tokens}**; the uniform grid has ")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"alpha": 2.0, "max_tokens": None},
        {"max_tokens": 5},
        {"image_size": 224, "coarsest": "native"},
        {"criterion": "structure", "structure_size": 5, "alpha": 0.3},
        {"criterion": "random", "alpha": 0.6, "seed": 3},
        {"layout": "centered", "criterion": "variance"},
    ],
)
def test_the_view_is_what_the_tower_cuts(demo: Demo, pictures: tuple[str, str], changes: dict[str, Any]) -> None:
    tower, picture = demo.tower, load_image(pictures[0])
    kept = tower.settings
    settings = replace(kept, **changes)
    leaves = cut(picture, tower, settings)
    assert tower.settings == kept and tower.image_processor.qlip == kept
    tower.settings = settings
    pixels = tower.image_processor.preprocess(picture, return_tensors="pt")["pixel_values"][0]
    expected = tower.partition(pixels)
    tower.settings = kept
    assert leaves.grid == expected.grid
    assert torch.equal(leaves.boxes, expected.boxes)


def test_the_caption_counts_the_thumbnail(demo: Demo, pictures: tuple[str, str]) -> None:
    leaves = cut(load_image(pictures[1]), demo.tower, replace(demo.tower.settings, alpha=1.0))
    assert caption(leaves, 64) == "**68 visual tokens**, 64 of them the thumbnail's; the uniform grid has 16."


def test_a_question_is_answered_step_by_step_as_the_engine_answers(
    visitor: Client, demo: Demo, pictures: tuple[str, str]
) -> None:
    show(visitor, pictures[0])
    steps = ask(visitor, " What is this? ", length=80)
    asked, answer = ("user", "What is this?"), alone(demo, pictures[0], "What is this?", length=80)
    assert steps[0] == [asked]
    assert steps[-1] == [asked, ("assistant", answer)]
    assert all(answer.startswith(text) for (_, text) in (step[1] for step in steps[1:]))


def test_a_second_question_is_asked_with_the_first_turn(demo: Demo, pictures: tuple[str, str]) -> None:
    turns = (("What?", "a circle"), ("stopped too early", ""))
    prompt = prompt_conversation(demo.engine, turns, "Which colour?").get_prompt()
    assert prompt.endswith("USER: <image>\nWhat? ASSISTANT: a circle</s>USER: Which colour? ASSISTANT:")


def test_two_visitors_keep_their_own_picture_settings_and_conversation(
    url: str, visitor: Client, demo: Demo, pictures: tuple[str, str]
) -> None:
    other = Client(url, verbose=False, analytics_enabled=False)
    show(visitor, pictures[0])
    show(other, pictures[1])
    first, second = ask(visitor, "What?"), ask(other, "Why?", budget=8)
    again = ask(visitor, "And now?")
    other.close()
    assert first[-1] == [("user", "What?"), ("assistant", alone(demo, pictures[0], "What?"))]
    assert second[-1] == [("user", "Why?"), ("assistant", alone(demo, pictures[1], "Why?", budget=8))]
    assert again[0] == [*first[-1], ("user", "And now?")]


def test_clearing_forgets_the_conversation_and_keeps_the_picture(visitor: Client, pictures: tuple[str, str]) -> None:
    show(visitor, pictures[0])
    ask(visitor, "What?")
    assert visitor.predict(api_name="/clear") == []
    assert ask(visitor, "Why?")[0] == [("user", "Why?")]


def test_an_answer_that_nobody_waits_for_makes_room_for_the_next(demo: Demo, pictures: tuple[str, str]) -> None:
    session = Session(load_image(pictures[0]))
    stopped = demo.ask(session, "What?", ALPHA, BUDGET, 0.0, 1000)
    while not next(stopped)[0].turns[-1][1]:
        pass
    stopped.close()
    *_, (after, _, _) = demo.ask(session, "What?", ALPHA, BUDGET, 0, LENGTH)
    assert after.turns == (("What?", alone(demo, pictures[0], "What?")),)


def test_without_a_picture_the_page_says_what_to_do(visitor: Client) -> None:
    with pytest.raises(AppError, match="There is no picture yet. Choose one"):
        ask(visitor, "What?")


def test_an_empty_question_is_refused(visitor: Client, pictures: tuple[str, str]) -> None:
    show(visitor, pictures[0])
    with pytest.raises(AppError, match="The question is empty. Type one"):
        ask(visitor, "  ")


def test_what_does_not_fit_the_context_is_refused_with_a_way_out(demo: Demo, pictures: tuple[str, str]) -> None:
    with pytest.raises(gr.Error, match=r"exceed the model's context of 2048. Lower the token budget") as caught:
        list(demo.ask(Session(load_image(pictures[0])), "What?", ALPHA, BUDGET, 0.0, 2048))
    assert not caught.value.print_exception


def test_a_file_that_is_no_picture_is_refused_without_its_path(visitor: Client, tmp_path: Path) -> None:
    file = tmp_path / "letter.png"
    file.write_text("Dear Sir")
    with pytest.raises(AppError, match="This picture cannot be used: not a readable image") as caught:
        show(visitor, str(file))
    assert "letter" not in str(caught.value)


@pytest.mark.parametrize("meta", [{}, {"meta": {"_type": "gradio.FileData"}}])
def test_a_request_cannot_open_a_file_that_was_not_uploaded(
    url: str, pictures: tuple[str, str], meta: dict[str, Any]
) -> None:
    calls = f"{url}gradio_api/call/open_picture"
    call = httpx.post(calls, json={"data": [{"path": pictures[0], **meta}, ALPHA, BUDGET]}).json()
    events = httpx.get(f"{calls}/{call['event_id']}").text
    assert "event: error" in events
    assert "event: complete" not in events


def test_a_clip_tower_has_no_view_and_answers(tmp_path: Path, pictures: tuple[str, str]) -> None:
    demo = Demo(load(tmp_path, qlip=None))
    session = Session(load_image(pictures[0]))
    assert demo.look(session, ALPHA, BUDGET) == (None, "")
    *_, (session, chat, box) = demo.ask(session, "What?", ALPHA, BUDGET, 0, LENGTH)
    assert chat == chat_messages(session.turns)
    assert chat[1]["content"]
    assert box == ""
    (view,) = [
        block for block in build_page(demo).blocks.values() if isinstance(block, gr.Column) and not block.visible
    ]
    assert view.children[0].label == "What the model sees"


def test_the_page_asks_nothing_of_other_hosts(url: str) -> None:
    page = httpx.get(url).text
    assert re.findall(r"<(?:script|link)[^>]+(?:src|href)=\"(?:https?:)?//(?!127\.0\.0\.1)[^\"]+", page) == []


def test_a_missing_checkpoint_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model-path", str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("gradio_web_server: error: ")
