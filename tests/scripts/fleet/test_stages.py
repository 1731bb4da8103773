"""Stage times are read from measurements, fitted to lines, and drawn requests are those that were asked for."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from scripts.fleet.measure import fit
from scripts.fleet.stages import Request, StageTimes, read_times, write_times
from scripts.fleet.traffic import Mix, draw_requests, read_trace


def test_stages_are_sums_of_their_parts() -> None:
    times = StageTimes(0.01, 0.02, 0.5, 0.001, 0.25, 0.0001, 0.125, 0.5, 0.00001)
    request = Request(0.0, 2.0, 100, 50, 7)
    assert times.preparing(request) == pytest.approx(0.01 + 0.02 * 2)
    assert times.starting([request, request]) == pytest.approx(0.5 + 0.001 * 200 + 0.25 + 0.0001 * 300)
    assert times.stepping(3, 1000) == pytest.approx(0.125 + 1.5 + 0.01)
    text = Request(0.0, 0.0, 0, 50, 7)
    assert times.starting([text]) == pytest.approx(0.25 + 0.0001 * 50)  # the tower does not run


def test_a_file_of_times_reads_back_and_mistakes_are_named(tmp_path: Path) -> None:
    file, times = tmp_path / "times.json", StageTimes(prefill=0.5, decode_per_row=0.25)
    write_times(file, times, "a machine")
    assert read_times(file) == times
    for content, words in (
        ({"seconds": {"prefil": 1}}, "has 'prefil'; allowed are prepare,"),
        ({"seconds": {"prefill": -1}}, "prefill is -1; it must be a number of seconds"),
        ({"seconds": {"prefill": "1"}}, "prefill is '1'"),
        ({"times": {}}, 'has no "seconds"'),
    ):
        file.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=words):
            read_times(file)


def test_fitted_factors_are_those_that_made_the_times_and_never_negative() -> None:
    numbers = random.Random(0)
    features = [[1.0, rows, rows * length] for rows in (1, 4, 16) for length in (128, 512, 1024)]
    exact = [0.02 + 0.003 * rows + 1e-6 * context for _, rows, context in features]
    assert fit(features, exact) == pytest.approx([0.02, 0.003, 1e-6])
    noisy = [0.02 * (1 + 0.2 * numbers.random()) for _ in features]
    assert all(factor >= 0 for factor in fit(features, noisy))
    assert fit([[1, 1], [1, 2], [1, 3]], [3.0, 2.0, 1.0]) == pytest.approx([2.0, 0.0])  # a falling line: its mean


def test_requests_of_two_budgets_differ_in_their_tokens_only() -> None:
    sizes = ((640, 480), (2048, 1536))
    small, large, fixed = (draw_requests(Mix(sizes, budget), 5.0, 2000, seed=3) for budget in (288, 1600, None))
    assert {request.visual for request in small} == {288}
    assert {request.visual for request in large} == {46 * 34, 1600}  # the small images have fewer cells
    assert {request.visual for request in fixed} == {576}
    for one, other in zip(small, large, strict=True):
        assert (one.at, one.megapixels, one.text, one.answer) == (other.at, other.megapixels, other.text, other.answer)
    assert small[-1].at == pytest.approx(2000 / 5.0, rel=0.05)


def test_a_trace_is_sorted_and_its_mistakes_are_named(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    lines = [{"at": at, "megapixels": 1.0, "visual": 5, "text": 6, "answer": 7} for at in (2.0, 1.0)]
    file.write_text("\n".join(map(json.dumps, lines)))
    assert [request.at for request in read_trace(file)] == [1.0, 2.0]
    mistakes = [{"answer": 0}, {"visual": -1}, {"tokens": 1}, {"at": "now"}, {"at": math.inf}]
    for change in (*mistakes, {"megapixels": math.nan}, {"answer": 2.5}, {"text": True}):
        file.write_text(json.dumps({**lines[0], **change}))
        with pytest.raises(ValueError, match="trace.jsonl:1 is not a request of a trace"):
            read_trace(file)


def test_a_trace_without_requests_is_refused(tmp_path: Path) -> None:
    (tmp_path / "trace.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"trace\.jsonl holds no request"):
        read_trace(tmp_path / "trace.jsonl")
