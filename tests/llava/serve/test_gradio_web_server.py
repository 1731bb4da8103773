"""The web demo as programs meet it: clients talk to the page over the loopback."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from llava.images import load_image
from llava.mm_utils import get_model_name_from_path
from llava.model.builder import load_pretrained_model
from llava.serve.engine import ChatEngine
from llava.serve.engine.params import QLIPOptions, Sampling
from llava.serve.gradio_web_server import main
from llava.serve.http.failures import RequestError
from llava.serve.web.backend import EngineBackend
from llava.serve.web.controls import CLIP, QLIP
from llava.serve.web.handlers import Demo
from llava.serve.web.moderation import Moderator
from llava.serve.web.page import PageText, build_page
from llava.serve.web.session import MAX_PIXELS, Exchange, Session, open_upload
from llava.serve.web.views import NOTHING_SEEN
from tests.llava.checkpoints import make_llava_checkpoint
from tests.llava.serve.openai.serving import Gate, becomes_idle, loaded, picture, picture_paths, reaches
from tests.llava.serve.web.pages import page_of

ALPHA, BUDGET = 0.8, 96
QUESTION = "What is in the picture?"
FIRST, SECOND = str(picture_paths()[0]), str(picture_paths()[1])


def controls(way: str = QLIP, alpha: float = ALPHA, budget: int = BUDGET, length: int = 64) -> tuple[Any, ...]:
    """What the page's controls say: greedy answers."""
    return way, alpha, budget, 0, 1, length, None


@pytest.fixture(scope="module")
def engine() -> Iterator[ChatEngine]:
    with closing(ChatEngine(*loaded())) as engine:
        yield engine


@pytest.fixture(scope="module")
def demo(engine: ChatEngine) -> Demo:
    return Demo(EngineBackend(engine))


@pytest.fixture(scope="module")
def url(demo: Demo) -> Iterator[str]:
    with page_of(demo) as url:
        yield url


@pytest.fixture(scope="module")
def clients(url: str) -> Iterator[list[Client]]:
    """Clients that visitors take turns with: to close one takes a second."""
    clients = [Client(url, verbose=False, analytics_enabled=False) for _ in range(4)]
    yield clients
    with ThreadPoolExecutor() as pool:
        list(pool.map(Client.close, clients))


@pytest.fixture
def new_visitor(clients: list[Client]) -> Callable[..., Client]:
    """Gives visitors who have not been here before, and shows them a picture."""
    free = list(clients)

    def come(path: str | None = FIRST) -> Client:
        visitor = free.pop()
        visitor.reset_session()
        if path is not None:
            show(visitor, path)
        return visitor

    return come


def show(visitor: Client, path: str) -> tuple[Any, ...]:
    return visitor.predict(handle_file(path), *controls(), api_name="/open_picture")


def steps(visitor: Client, name: str, *inputs: Any) -> list[Any]:
    """Everything that an event shows, from its first step to its last."""
    job = visitor.submit(*inputs, api_name=name)
    job.result()
    return job.outputs()


def ask(visitor: Client, question: str = QUESTION, *said: Any) -> list[list[tuple[str, str]]]:
    """The conversation after each step of the answer, as (role, text)."""
    return [talk_of(chat) for chat, *_ in steps(visitor, "/ask", question, *(said or controls()))]


def talk_of(chat: Sequence[Any]) -> list[tuple[str, str]]:
    return [(entry["role"], "".join(part["text"] for part in entry["content"])) for entry in chat]


def alone(engine: ChatEngine, path: str, question: str = QUESTION, **options: Any) -> str:
    """The engine's own greedy answer to one question about one picture."""
    options = options or {"alpha": ALPHA, "max_tokens": BUDGET}
    sampling = Sampling(temperature=0, max_new_tokens=64)
    answer = engine.submit(engine.question(question, 1), [load_image(path)], sampling, QLIPOptions(**options))
    return "".join(answer).strip()


def count(html: str) -> int:
    """The number of visual tokens that a piece of the page tells first."""
    return int(re.search(r"<strong>([\d,]+)</strong> visual", html)[1].replace(",", ""))


# What the model sees


@pytest.mark.parametrize(("way", "alpha", "budget"), [(QLIP, 0.8, 96), (QLIP, 0, 300), (QLIP, 3, 20), (CLIP, 0.8, 96)])
def test_moving_a_control_shows_what_the_model_would_see_without_running_it(
    new_visitor: Callable[..., Client], engine: ChatEngine, way: str, alpha: float, budget: int
) -> None:
    visitor = new_visitor()
    options = QLIPOptions(enabled=False) if way == CLIP else QLIPOptions(alpha=alpha, max_tokens=budget)
    view = engine.vision.prepare(picture(), engine.vision.settings(options))
    with Gate(engine) as gate:  # as while the model answers somebody else
        seen, cost = visitor.predict(*controls(way, alpha, budget), api_name="/look")
        assert gate.batches == []
    assert count(cost) == view.tokens
    assert min(Image.open(seen).size) > 300


def test_a_new_picture_starts_a_new_conversation(new_visitor: Callable[..., Client]) -> None:
    visitor = new_visitor()
    ask(visitor)
    _, seen, cost, chat, *_ = show(visitor, SECOND)
    assert Image.open(seen).size[0] > 300
    assert count(cost) > 64
    assert chat == []


def test_no_two_drawings_share_a_file(demo: Demo) -> None:
    first, second = (demo.look(Session(picture()), *controls())[0] for _ in range(2))
    assert first and second and first != second
    assert Path(first).read_bytes() == Path(second).read_bytes()


def test_without_a_picture_there_is_nothing_to_see(new_visitor: Callable[..., Client]) -> None:
    assert new_visitor(None).predict(*controls(), api_name="/look") == (None, NOTHING_SEEN)


# Asking


def test_a_question_is_answered_step_by_step_as_the_engine_answers(
    new_visitor: Callable[..., Client], engine: ChatEngine
) -> None:
    shown = ask(new_visitor(), f" {QUESTION} ")
    asked, answer = ("user", QUESTION), alone(engine, FIRST)
    assert shown[0] == [asked]
    assert shown[-1] == [asked, ("assistant", answer)]
    texts = [text for step in shown for role, text in step[1:]]
    assert len(set(texts)) > 3
    assert all(answer.startswith(text) for text in texts)


def test_the_switch_and_the_sliders_decide_how_the_picture_is_seen(
    new_visitor: Callable[..., Client], engine: ChatEngine
) -> None:
    visitor = new_visitor()
    by_clip = ask(visitor, QUESTION, *controls(CLIP))[-1][-1][1]
    visitor.predict(api_name="/clear")
    coarse = ask(visitor, QUESTION, *controls(alpha=3.0, budget=20))[-1][-1][1]
    assert by_clip == alone(engine, FIRST, enabled=False) != alone(engine, FIRST)
    assert coarse == alone(engine, FIRST, alpha=3.0, max_tokens=20)


def test_the_page_tells_what_an_answer_cost(new_visitor: Callable[..., Client]) -> None:
    (*_, (_, cost, _)) = steps(new_visitor(), "/ask", QUESTION, *controls())
    assert re.search(
        r"<strong>\d+</strong> visual tokens.*<strong>[\d.]+ s</strong> to first token.* s</strong> in total", cost
    )


def test_a_second_question_is_asked_with_the_turns_that_were_answered() -> None:
    session = Session(picture()).with_answer("What?", "a circle").with_answer("stopped too early", "")
    turns = session.turns("Which colour?")
    assert [(turn.role, turn.text) for turn in turns] == [
        ("user", "What?"),
        ("assistant", "a circle"),
        ("user", "Which colour?"),
    ]
    assert [len(turn.images) for turn in turns] == [1, 0, 0]


def test_regenerating_asks_the_last_question_again(new_visitor: Callable[..., Client], engine: ChatEngine) -> None:
    visitor = new_visitor()
    ask(visitor, QUESTION, *controls(CLIP))
    (*_, (chat, _)) = steps(visitor, "/regenerate", *controls())
    assert talk_of(chat) == [("user", QUESTION), ("assistant", alone(engine, FIRST))]


def test_clearing_forgets_the_conversation_and_keeps_the_picture(new_visitor: Callable[..., Client]) -> None:
    visitor = new_visitor()
    ask(visitor)
    chat, *_ = visitor.predict(api_name="/clear")
    assert chat == []
    assert ask(visitor, "Why?")[0] == [("user", "Why?")]


def test_comparing_answers_both_ways_outside_the_conversation(
    new_visitor: Callable[..., Client], engine: ChatEngine
) -> None:
    visitor = new_visitor()
    ask(visitor, "How many objects are there?")
    final = steps(visitor, "/compare", QUESTION, *controls())[-1]
    (clip, qlip) = (part for part in final if isinstance(part, str))
    views = [
        engine.vision.prepare(picture(), engine.vision.settings(o))
        for o in (QLIPOptions(enabled=False), QLIPOptions(alpha=ALPHA, max_tokens=BUDGET))
    ]
    for side, answer, view in zip(
        (clip, qlip), (alone(engine, FIRST, enabled=False), alone(engine, FIRST)), views, strict=True
    ):
        assert f'<p class="side-answer">{answer}</p>' in side
        assert f"<dd>{view.tokens}</dd><dt>visual tokens</dt>" in side
        assert "to first token" in side and "in total" in side
    assert len(ask(visitor, "Why?")[0]) == 3  # one exchange, and the new question


def test_two_visitors_keep_their_own_picture_controls_and_conversation(
    new_visitor: Callable[..., Client], engine: ChatEngine
) -> None:
    visitor, other = new_visitor(FIRST), new_visitor(SECOND)
    first, second = ask(visitor), ask(other, "Why?", *controls(CLIP))
    again = ask(visitor, "And now?")
    assert first[-1] == [("user", QUESTION), ("assistant", alone(engine, FIRST))]
    assert second[-1] == [("user", "Why?"), ("assistant", alone(engine, SECOND, "Why?", enabled=False))]
    assert again[0] == [*first[-1], ("user", "And now?")]


def test_visitors_who_ask_at_the_same_time_are_answered_together(
    new_visitor: Callable[..., Client], engine: ChatEngine
) -> None:
    visitors = [new_visitor() for _ in range(4)]
    with Gate(engine, opens_at=4) as gate:
        jobs = [visitor.submit(QUESTION, *controls(), api_name="/ask") for visitor in visitors]
        chats = [job.result()[0] for job in jobs]
        assert sum(gate.batches) == 4
        assert len(gate.batches) <= 2  # those who came before the model began, and those who waited for it, if any
    assert {talk_of(chat)[-1][1] for chat in chats} == {alone(engine, FIRST)}


# Stopping


def request(visitor: str) -> gr.Request:
    return SimpleNamespace(session_hash=visitor)  # type: ignore[return-value]


def test_a_visitor_who_leaves_before_the_first_word_is_waited_for_no_longer(demo: Demo, engine: ChatEngine) -> None:
    async def leave() -> None:
        async def read(visitor: str) -> list[Any]:
            return [step async for step in demo.ask(request(visitor), Session(picture()), QUESTION, *controls())]

        with Gate(engine) as gate:
            stays = asyncio.create_task(read("stays"))
            assert await asyncio.to_thread(gate.await_submitted, 1)
            leaves = asyncio.create_task(read("leaves"))
            assert await asyncio.to_thread(gate.await_submitted, 2)
            await demo.leave(request("leaves"))
            with pytest.raises(asyncio.CancelledError):
                await leaves
            assert await asyncio.to_thread(reaches, engine, lambda: engine.waiting == 0)
            gate.opened.set()
            (*_, (session, *_)) = await stays
        assert session.exchanges[-1].answer == alone(engine, FIRST)

    asyncio.run(leave())
    assert becomes_idle(engine)
    assert demo._running == {}


def test_a_closed_answer_makes_the_model_stop(demo: Demo, engine: ChatEngine) -> None:
    async def look_away() -> None:
        answers = demo.ask(request("a"), Session(picture()), QUESTION, *controls(length=1000))
        async for session, *_ in answers:
            if session.exchanges[-1].answer:
                break
        await answers.aclose()

    asyncio.run(look_away())
    assert becomes_idle(engine)
    assert demo._running == {}


# What goes wrong


def refused(visitor: Client, name: str, *inputs: Any) -> str:
    with pytest.raises(AppError) as caught:
        visitor.predict(*inputs, api_name=name)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "inputs", "told"),
    [
        ("/ask", ("What?", *controls()), "There is no picture yet. Choose one, then ask."),
        ("/compare", ("What?", *controls()), "There is no picture yet. Choose one, then ask."),
        ("/regenerate", controls(), "There is no answer to give anew. Ask something first."),
    ],
)
def test_without_a_picture_the_page_says_what_to_do(
    new_visitor: Callable[..., Client], name: str, inputs: Any, told: str
) -> None:
    assert told in refused(new_visitor(None), name, *inputs)


@pytest.mark.parametrize(
    ("question", "said", "told"),
    [
        ("  ", controls(), "The question is empty. Type one, then press Ask."),
        ("What is <image>?", controls(), "it stands for a picture"),
        ("long " * 700, controls(), "Lower the token budget, or clear the chat."),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused_with_a_way_out(
    new_visitor: Callable[..., Client], question: str, said: Any, told: str
) -> None:
    assert told in refused(new_visitor(), "/ask", question, *said)


def test_controls_beyond_their_range_are_refused(demo: Demo) -> None:
    async def ask_with(*said: Any) -> None:
        async for _ in demo.ask(request("a"), Session(picture()), QUESTION, *said):
            pass

    for said, told in [
        ((QLIP, -1, 96, 0, 1, 8, None), "Split threshold is -1; it must be a number from 0 to 3"),
        ((QLIP, 1, 10**6, 0, 1, 8, None), "Token budget is 1000000; it must be a whole number from 1 to 2048"),
        ((QLIP, 1, 96, -1, 1, 8, None), "Temperature is -1; it must be a number from 0 to 2"),
        ((QLIP, 1, 96, 0, 1, 0, None), "Longest answer, in tokens is 0; it must be a whole number from 1 to 1024"),
    ]:
        with pytest.raises(gr.Error, match=re.escape(told)):
            asyncio.run(ask_with(*said))


def test_a_failure_of_the_model_is_told_without_its_cause(
    demo: Demo, engine: ChatEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a secret path")

    async def fails() -> None:
        async for _ in demo.ask(request("a"), Session(picture()), QUESTION, *controls()):
            pass

    monkeypatch.setattr(engine, "_generate", fail)
    with pytest.raises(gr.Error, match="The model failed") as caught:
        asyncio.run(fails())
    assert "secret" not in str(caught.value)
    assert not caught.value.print_exception


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The toasts that tell of pictures that cannot be used."""
    told: list[str] = []
    monkeypatch.setattr(gr, "Warning", lambda text, title: told.append(f"{title}: {text}"))
    return told


def opened(visitor: Client, path: Path) -> tuple[Any, ...]:
    """The picture's place, the view and its cost after an upload."""
    place, seen, cost, *_ = show(visitor, str(path))
    return place, seen, cost


NOTHING = (None, None, NOTHING_SEEN)


@pytest.mark.parametrize("content", [b"Dear Sir", b"", b"\x89PNG\r\n\x1a\n" + bytes(99), b"GIF89a" + b"\xff" * 60])
def test_a_file_that_is_no_picture_is_refused_without_its_path(
    new_visitor: Callable[..., Client], tmp_path: Path, warnings: list[str], content: bytes
) -> None:
    (tmp_path / "letter.png").write_bytes(content)
    visitor = new_visitor()
    assert opened(visitor, tmp_path / "letter.png") == NOTHING
    (told,) = warnings
    assert told.startswith("This picture cannot be used: Not a readable image")
    assert told.endswith("Choose another picture.") and "letter" not in told
    assert "There is no picture yet" in refused(visitor, "/ask", QUESTION, *controls())


@pytest.mark.parametrize("size", [(1, 1), (20000, 10), (6000, 60)])
def test_a_picture_of_impossible_shape_is_refused(
    new_visitor: Callable[..., Client], tmp_path: Path, warnings: list[str], size: tuple[int, int]
) -> None:
    Image.new("L", size).save(tmp_path / "odd.png")
    assert opened(new_visitor(None), tmp_path / "odd.png") == NOTHING
    assert f"{size[0]}x{size[1]}" in warnings[0]


def test_a_change_that_a_browser_tells_twice_is_one(
    new_visitor: Callable[..., Client], tmp_path: Path, warnings: list[str]
) -> None:
    (tmp_path / "letter.png").write_bytes(b"Dear Sir")
    visitor = new_visitor()
    ask(visitor)
    show(visitor, FIRST)
    assert len(ask(visitor, "Why?")[0]) == 3  # the conversation goes on
    opened(visitor, tmp_path / "letter.png")
    opened(visitor, tmp_path / "letter.png")
    assert len(warnings) == 1


@pytest.mark.parametrize("meta", [{}, {"meta": {"_type": "gradio.FileData"}}])
def test_a_request_cannot_open_a_file_that_was_not_uploaded(
    url: str, warnings: list[str], meta: dict[str, Any]
) -> None:
    calls = f"{url}gradio_api/call/open_picture"
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


def test_what_moderation_refuses_is_not_asked(engine: ChatEngine) -> None:
    class Strict(Moderator):
        async def check(self, text: str) -> None:
            raise RequestError(400, "flagged", f"no {text}")

    demo = Demo(EngineBackend(engine), Strict("key"))

    async def steps_of(event: Callable[..., Any]) -> list[Any]:
        return [step async for step in event(request("a"), Session(picture()), "shouting", *controls())]

    with Gate(engine) as gate:
        for event in (demo.ask, demo.compare):
            with pytest.raises(gr.Error, match="No shouting. Ask something else."):
                asyncio.run(steps_of(event))
        assert gate.submitted == 0


# A model without a quadtree


def test_a_clip_model_is_shown_as_it_sees_and_cannot_be_switched(tmp_path: Path) -> None:
    path = str(make_llava_checkpoint(tmp_path, qlip=None))
    with closing(
        ChatEngine(*load_pretrained_model(path, None, get_model_name_from_path(path), device="cpu"))
    ) as engine:
        demo = Demo(EngineBackend(engine))
        seen, cost = demo.look(Session(picture()), *controls())
        assert seen is not None and count(cost) == engine.vision.tower.num_patches
        page = build_page(demo)
        hidden = {block.elem_id for block in page.blocks.values() if not getattr(block, "visible", True)}
        assert {"way", "alpha", "budget", "compare"} <= hidden

        async def read() -> Session:
            (*_, (session, *_)) = [
                s async for s in demo.ask(request("a"), Session(picture()), "What?", *controls(length=6))
            ]
            return session

        sampling = Sampling(temperature=0, max_new_tokens=6)
        own = "".join(engine.reply(engine.question("What?", 1), [picture()], sampling)).strip()
        assert asyncio.run(read()).exchanges == (Exchange("What?", own),)


# The page itself


@pytest.mark.parametrize("heading", [True, False])
def test_a_page_inside_another_has_no_heading(demo: Demo, heading: bool) -> None:
    blocks = build_page(demo, PageText("A notice.", heading=heading)).blocks.values()
    (head,) = (block for block in blocks if getattr(block, "elem_id", None) == "head")
    assert head.visible == heading


def test_the_page_asks_nothing_of_other_hosts(url: str) -> None:
    page = httpx.get(url)
    assert re.findall(r"<(?:script|link)[^>]+(?:src|href)=\"(?:https?:)?//(?!127\.0\.0\.1)[^\"]+", page.text) == []
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert page.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--model-path", "{tmp}/nothing"], "nothing"),
        (["--moderate"], "--moderate needs an OpenAI key in the environment variable OPENAI_API_KEY"),
        (["--controller-url", "http://x", "--native-size", "3"], "native size is 3; it must be at least 14"),
        (["--controller-url", "http://x", "--alpha", "1", "--load-4bit"], "so --alpha, --load-4bit cannot be given"),
    ],
)
def test_flags_that_cannot_work_are_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, flags: list[str], told: str
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert main([*(flag.format(tmp=tmp_path) for flag in flags), "--port=0"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("gradio_web_server: error: ")
    assert told in last
