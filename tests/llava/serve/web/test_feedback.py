"""Feedback on answers: the lines of LLaVA's log, and what is refused."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from llava.serve.engine import ChatEngine
from llava.serve.web import feedback
from llava.serve.web.backend import EngineBackend
from llava.serve.web.feedback import FeedbackLog, read_vote
from llava.serve.web.handlers import Demo
from llava.serve.web.session import STOPPED, WAITING, Session
from tests.llava.serve.openai.serving import picture

CLIENT = SimpleNamespace(session_hash="a", client=SimpleNamespace(host="192.0.2.7"))


def clicked(index: Any, liked: Any) -> gr.EventData:
    return gr.EventData(None, {"index": index, "value": "", "liked": liked})


def lines_of(folder: Path) -> list[dict[str, Any]]:
    (file,) = folder.iterdir()
    assert file.name == f"{date.today().isoformat()}-conv.json"
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize(("liked", "kind"), [(True, "upvote"), (False, "downvote"), ("Report", "flag")])
def test_a_vote_is_a_line_as_llava_s_server_writes_it(
    engine: ChatEngine, tmp_path: Path, liked: Any, kind: str
) -> None:
    """LLaVA's gradio_web_server: tstamp, type, model, state (`Conversation.dict`) and ip, in this order."""
    demo = Demo(EngineBackend(engine, "llava-demo"), feedback=FeedbackLog(tmp_path / "new"))
    session = Session(picture()).with_answer("What?", "a circle").with_answer("Where?", "left")
    asyncio.run(demo.vote(CLIENT, session, None, clicked(1, liked)))
    (record,) = lines_of(tmp_path / "new")
    assert list(record) == ["tstamp", "type", "model", "state", "ip"]
    assert (record["type"], record["model"], record["ip"]) == (kind, "llava-demo", "192.0.2.7")
    assert abs(record["tstamp"] - time.time()) < 600
    state = record["state"]
    assert list(state) == ["system", "roles", "messages", "offset", "sep", "sep2"]
    assert [text for _, text in state["messages"][state["offset"] :]] == [f"{engine.image_token}\nWhat?", "a circle"]


def test_votes_are_appended_once_and_one_taken_back_is_none(engine: ChatEngine, tmp_path: Path) -> None:
    demo = Demo(EngineBackend(engine), feedback=FeedbackLog(tmp_path))
    session = Session(picture()).with_answer("What?", "a circle").with_answer("Where?", "left")
    for index, liked in ((1, True), (1, None), (1, ""), ([3, 0], "Report"), ([3, 0], "Report")):
        asyncio.run(demo.vote(CLIENT, session, None, clicked(index, liked)))
    assert [line["state"]["messages"][-1][1] for line in lines_of(tmp_path)] == ["a circle", "left"]


@pytest.mark.parametrize(
    "data",
    [None, "x", {}, {"index": "1"}, {"index": True, "liked": True}, {"index": 1, "liked": "Love"}, {"index": []}],
)
def test_what_is_no_vote_is_refused(data: Any) -> None:
    with pytest.raises(ValueError, match="reload the page"):
        read_vote(data)


def test_an_answer_that_is_gone_takes_no_vote(engine: ChatEngine, tmp_path: Path) -> None:
    demo = Demo(EngineBackend(engine), feedback=FeedbackLog(tmp_path))
    with pytest.raises(gr.Error, match="no longer in the conversation"):
        asyncio.run(demo.vote(CLIENT, Session(picture()), None, clicked(1, True)))


@pytest.mark.parametrize("mark", [WAITING, STOPPED])
def test_an_answer_without_text_takes_no_vote(engine: ChatEngine, tmp_path: Path, mark: str) -> None:
    demo = Demo(EngineBackend(engine), feedback=FeedbackLog(tmp_path))
    session = Session(picture()).with_answer("What?", "", mark=mark)
    with pytest.raises(gr.Error, match="There is no answer to vote on"):
        asyncio.run(demo.vote(CLIENT, session, None, clicked(1, True)))
    assert list(tmp_path.iterdir()) == []


def test_a_full_day_takes_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedback, "MAX_BYTES", 300)
    log = FeedbackLog(tmp_path)
    log.write("upvote", "m", {"messages": ["x" * 200]}, "")
    with pytest.raises(ValueError, match="full; try again tomorrow"):
        log.write("upvote", "m", {"messages": ["x" * 200]}, "")
    assert len(lines_of(tmp_path)) == 1


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="--feedback-dir .* is a file; name a folder"):
        FeedbackLog(tmp_path / "file")
