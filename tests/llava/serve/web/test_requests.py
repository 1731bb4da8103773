"""The page refuses malformed requests with an error in words, and without a traceback in the log."""

from __future__ import annotations

import json
import logging
import math
import re
import secrets
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from gradio.utils import get_upload_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.serve.engine import ChatEngine
from llava.serve.web.backend import EngineBackend
from llava.serve.web.controls import CLIP, QLIP, Controls, read_question
from llava.serve.web.handlers import Demo
from llava.serve.web.page import PageText
from llava.utils import demo_picture_paths
from tests.llava.serve.openai.serving import QUESTION
from tests.llava.serve.web.pages import page_of

GOOD: list[Any] = [QLIP, 0.8, 96, 0, 1, 16, None]
UPLOAD = {"meta": {"_type": "gradio.FileData"}}


@pytest.fixture(scope="module")
def page(demo: Demo) -> Iterator[httpx.Client]:
    """A client of a page with examples, whose events are called with garbage too. One: each new one reads CA files."""
    text = PageText("A notice.", [str(path) for path in demo_picture_paths()], [QUESTION])
    with page_of(demo, text) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture(autouse=True)
def no_traceback(
    page: httpx.Client, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> Iterator[None]:
    """Fails if the server has logged more than a line about a request."""
    server = logging.getLogger("uvicorn")  # does not propagate
    server.addHandler(caplog.handler)
    yield
    end = f"end-{secrets.token_hex(8)}"
    post(page, f"call/{end}", {"data": []})
    server.removeHandler(caplog.handler)
    log = caplog.text + "".join(capsys.readouterr())
    assert f"refused a call of '/gradio_api/call/{end}'" in log
    assert "Traceback" not in log and "Error:" not in log, log


def post(page: httpx.Client, route: str, body: Any) -> httpx.Response:
    """Posts JSON as Python writes it, with NaN and lone surrogates."""
    head = {"Content-Type": "application/json"}
    return page.post(f"gradio_api/{route}", content=json.dumps(body), headers=head)


def refusal(page: httpx.Client, event: str, data: list[Any]) -> str:
    """What a client of one of the page's events is told."""
    call = post(page, f"call/{event}", {"data": data})
    events = page.get(f"gradio_api/call/{event}/{call.json()['event_id']}").text
    kind, data_line = events.strip().splitlines()[-2:]
    assert kind == "event: error", events
    told = json.loads(data_line.removeprefix("data: "))
    return told["error"]


@pytest.mark.parametrize(
    ("index", "value", "told"),
    [
        (0, "nonsense", "The mode is 'nonsense'; it must be QLIP, QLIP by question or CLIP."),
        (0, ["a"], "The mode is a JSON array; it must be QLIP, QLIP by question or CLIP."),
        (1, "abc", "Split threshold is 'abc'; it must be a number from 0 to 3."),
        (1, math.nan, "Split threshold is nan; it must be a number from 0 to 3."),
        (1, None, "Split threshold is empty; it must be a number from 0 to 3."),
        (1, True, "Split threshold is True; it must be a number from 0 to 3."),
        pytest.param(2, 10**400, "Token budget is a huge number; it must be a whole number from 1 to 1920.", id="huge"),
        (2, 2.5, "Token budget is 2.5; it must be a whole number from 1 to 1920."),
        (3, -5, "Temperature is -5; it must be a number from 0 to 2."),
        (3, math.inf, "Temperature is inf; it must be a number from 0 to 2."),
        (4, {"a": 1}, "Top-p is a JSON object; it must be a number from 0.05 to 1."),
        (5, 1e9, "Longest answer, in tokens is 1000000000.0; it must be a whole number from 1 to 1024."),
        (5, "<b>x</b>", "in tokens is '&lt;b&gt;x&lt;/b&gt;'; it must be a whole number from 1 to 1024."),
        (6, {"x": 1}, "The model is a JSON object; it must be a name of at most 300 characters."),
    ],
)
def test_a_control_s_value_that_is_none_is_told_with_what_it_may_be(
    page: httpx.Client, index: int, value: Any, told: str
) -> None:
    said = [value if at == index else good for at, good in enumerate(GOOD)]
    assert refusal(page, "ask", ["What?", *said]).endswith(told)


def test_an_upload_that_is_broken_off_is_no_error_of_the_server(page: httpx.Client) -> None:
    head = b"POST /gradio_api/upload HTTP/1.1\r\nHost: a\r\nContent-Length: 999\r\n"
    with socket.create_connection((page.base_url.host, page.base_url.port)) as connection:
        connection.sendall(head + b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n")


def test_the_api_s_description_names_no_file_of_the_server(page: httpx.Client) -> None:
    """Of the example that the page shows at first."""
    described = page.get("gradio_api/info")
    picture = described.json()["named_endpoints"]["/open_picture"]["parameters"][0]
    assert (picture["parameter_name"], picture["parameter_has_default"]) == ("upload", False)
    assert get_upload_folder() not in described.text


@pytest.mark.parametrize(("event", "question"), [("look", []), ("compare", ["What?"])])
@pytest.mark.parametrize(("index", "value"), [(0, "nonsense"), (6, {"x": 1})], ids=["first", "last"])
def test_other_events_read_their_controls_alike(
    page: httpx.Client, event: str, question: list[str], index: int, value: Any
) -> None:
    said = [value if at == index else good for at, good in enumerate(GOOD)]
    assert refusal(page, event, question + said) == refusal(page, "ask", ["What?", *said])


@pytest.mark.parametrize(
    ("question", "told"),
    [
        ({"a": 1}, "The question is a JSON object; it must be text."),
        (7, "The question is 7; it must be text."),
        ("x" * 5000, "The question has 5,000 characters; at most 4,000 are allowed, so shorten it."),
        ("\ud800", "The question contains an invalid character (a lone surrogate); type it again."),
        (
            "<image>?",
            "The question may not hold '&lt;image&gt;': it marks where a picture is; write it without the angle",
        ),
        ({"path": "/etc/passwd", **UPLOAD}, "This request does not fit the page: a value is missing"),
        (None, "There is no picture yet. Choose one, then ask."),
    ],
)
def test_a_question_that_is_none_is_told(page: httpx.Client, question: Any, told: str) -> None:
    assert refusal(page, "ask", [question, *GOOD]).startswith(told)


@pytest.mark.parametrize(
    "upload", ["x", [1], {"path": 1}, {"path": "/etc/passwd", **UPLOAD}, {"path": "http://127.0.0.1:1/x", **UPLOAD}]
)
def test_what_is_no_upload_is_told(page: httpx.Client, upload: Any) -> None:
    told = refusal(page, "open_picture", [upload, *GOOD])
    assert told.startswith("This request does not fit the page")
    assert "passwd" not in told


@pytest.mark.parametrize("event", ["look", "ask", "open_picture", "regenerate", "compare"])
def test_missing_values_are_told(page: httpx.Client, event: str) -> None:
    assert "a value is missing" in refusal(page, event, [])


@pytest.mark.parametrize(
    ("route", "body", "status"),
    [
        ("call/nonsense", {"data": GOOD}, 400),
        ("call/v2/nonsense", {"question": "What?"}, 400),
        ("call/v2/ask", {"nonsense": "What?"}, 400),
        ("api/nonsense", {"data": GOOD}, 400),
        ("queue/join", {"data": [], "fn_index": 999, "session_hash": "a"}, 400),
        ("queue/join", {"data": [], "fn_index": "x", "session_hash": "a"}, 422),
        ("queue/join", {"data": [], "fn_index": 2, "session_hash": ["a"]}, 422),
        ("queue/join", ["a"], 422),
        ("run/look", {"data": GOOD, "session_hash": 7}, 422),
    ],
)
def test_a_call_that_fits_no_event_is_refused(page: httpx.Client, route: str, body: Any, status: int) -> None:
    reply = post(page, route, body)
    assert reply.status_code == status
    assert reply.headers["content-security-policy"]


@pytest.mark.parametrize("body", [json.dumps({"data": ["a" * 2**20]}), '{"data": [' + "[]," * 200_000 + "0]}"])
@pytest.mark.parametrize("route", ["call/ask", "queue/join", "run/predict", "nothing"])
def test_a_body_that_is_larger_than_any_event_s_is_refused(page: httpx.Client, route: str, body: str) -> None:
    reply = page.post(f"gradio_api/{route}", content=body, headers={"Content-Type": "application/json"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "request_too_large")


def test_an_upload_may_be_larger(page: httpx.Client) -> None:
    reply = page.post("gradio_api/upload", files={"files": ("a.png", b"0" * 2**21)})
    assert reply.status_code == 200 and len(reply.json()) == 1


def test_every_event_of_the_page_bears_garbage(page: httpx.Client) -> None:
    """Those included that programs have no use for: whatever is listed in the page's own configuration.

    Events that share a handler have numbered names; one of them, and one without a handler here, is called."""
    listed = page.get("config").json()["dependencies"]
    events = {re.sub(r"_\d+$", "", event["api_name"]): event for event in listed}
    assert len(events) > 15
    for event in events.values():
        for number, data in enumerate(([], ["<b>"] * len(event["inputs"]), [[[{}]]] * len(event["inputs"]))):
            session = f"garbage-{event['id']}-{number}"
            join = {"data": data, "fn_index": event["id"], "session_hash": session, "event_data": "x", "trigger_id": 9}
            assert post(page, "queue/join", join).status_code == 200
            stream = f"gradio_api/queue/data?session_hash={session}"
            with page.stream("GET", stream) as lines:
                (end,) = [line for line in lines.iter_lines() if "process_completed" in line]
            outcome = json.loads(end.removeprefix("data: "))
            assert outcome["success"] or len(outcome["output"]["error"]) > 10, outcome


# Without a server: whatever JSON may hold


@pytest.fixture(scope="module")
def backend(engine: ChatEngine) -> EngineBackend:
    return EngineBackend(engine)


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([*GOOD, CLIP])
values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=4)


@settings(max_examples=100)
@given(st.lists(values, max_size=8) | st.tuples(*(st.just(good) | values for good in GOOD)))
def test_controls_are_read_or_refused_in_words(backend: EngineBackend, said: Any) -> None:
    try:
        controls = Controls.read(said, backend)
    except ValueError as error:
        assert 10 < len(str(error)) < 200
    else:
        options, sampling = controls.options(backend), controls.sampling()
        assert (backend.engine.vision.settings(options) is None) == (controls.mode == CLIP)
        assert 0 <= sampling.temperature <= 2 and 1 <= sampling.max_new_tokens <= 1024


@settings(max_examples=100)
@given(values | st.text(st.characters()))
def test_a_question_is_read_or_refused_in_words(value: Any) -> None:
    try:
        question = read_question(value)
    except ValueError as error:
        assert 10 < len(str(error)) < 200
    else:
        assert question.encode("utf-8").decode("utf-8") == (value or "").strip()
