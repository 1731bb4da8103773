"""The soak run keeps its promises at a small scale, and sends what it says it sends."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from llava.images import ImageError, load_image
from scripts.soak import hostile, programs
from scripts.soak.faults import soak
from scripts.soak.report import Report
from scripts.soak.scale import QUICK
from scripts.soak.target import is_answer
from tests.llava.serve.programs import ForkedProcess


def test_the_servers_survive_a_short_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(programs, "start_process", ForkedProcess)  # without the imports of four models' processes
    assert asyncio.run(soak(QUICK)) == []


def test_a_broken_promise_is_remembered_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report()
    report.check(True, "one")
    report.check(False, "two", 3)
    assert report.failures == ["two"]
    assert capsys.readouterr().out == "ok    one\nFAIL  two (3)\n"


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, b'{"text": "a", "error_code": 0}\0{"text": "ab", "error_code": 0, "finish_reason": "stop"}\0', True),
        (200, b'{"choices": [{"finish_reason": "length"}]}', True),
        (200, b'{"text": "a", "error_code": 0}\0{"text": "the model failed", "error_code": 1}\0', False),
        (500, b'{"choices": [{"finish_reason": "stop"}]}', False),
    ],
)
def test_an_answer_is_a_complete_one(status: int, body: bytes, expected: bool) -> None:
    assert is_answer(httpx.Response(status, content=body)) is expected


def test_malformed_requests_are_many_and_each_wrong_in_one_field() -> None:
    made = [hostile.malformed(number, "m", "BBBB") for number in range(200)]
    assert len({(bad.path, bad.body) for bad in made}) > 120
    assert {bad.path for bad in made} == {hostile.LLAVA, hostile.OPENAI}
    good = {
        path: hostile.good(path, "m", "BBBB", "What is in the picture?") for path in (hostile.LLAVA, hostile.OPENAI)
    }
    for bad in made:
        if "=" in bad.what:
            request = json.loads(bad.body)
            assert sum(request.get(name) != good[bad.path].get(name) for name in request) == 1


@pytest.mark.parametrize("name", hostile.PICTURES)
def test_pictures_are_answered_or_refused_as_declared(name: str) -> None:
    make, answered = hostile.PICTURES[name]
    if answered:
        assert load_image(make()).mode == "RGB"
    else:
        with pytest.raises(ImageError):
            load_image(make())
