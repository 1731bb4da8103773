"""A replica's stages are timed as often as they run, and the simulation gets what they took."""

from __future__ import annotations

import asyncio

import pytest

from llava.model.builder import load_pretrained_model
from llava.serve.engine import ChatEngine
from llava.serve.engine.params import EngineLimits
from llava.utils import demo_model_path
from scripts.bench.fleet import LONE, StageTimer, answer, answer_one_by_one, describe, fit_times, make_question
from scripts.fleet.stages import StageTimes

LEAST = StageTimes(encode=0.03, prefill=0.02, decode=0.01)


def test_a_lone_request_takes_its_stages_and_the_rest() -> None:
    engine = ChatEngine(*load_pretrained_model(demo_model_path(), device="cpu"), limits=EngineLimits(max_prefix_mib=0))
    question = make_question(engine, 0)
    before = asyncio.run(answer(engine, question, 24))
    timer = StageTimer(engine, LEAST)
    found = asyncio.run(answer(engine, question, 24))
    assert (found["answer"], found["tokens"]) == (before["answer"], before["tokens"])
    seconds = {stage: [taken for _, taken in seen] for stage, seen in timer.samples.items()}
    assert [len(seconds[stage]) for stage in ("prepare", "encode", "prefill")] == [1, 1, 1]
    assert len(seconds["decode"]) == found["answer"] - 1 > 5
    assert seconds["encode"][0] >= 0.03 and seconds["prefill"][0] >= 0.02 and min(seconds["decode"]) >= 0.01
    assert sum(map(sum, seconds.values())) <= found["whole"]
    assert 0 <= asyncio.run(answer_one_by_one(engine, timer, [question] * 2, 24)) < found["whole"]
    assert not any(timer.samples.values()) and LONE >= 1
    engine.close()


def test_times_are_fitted_over_all_replicas() -> None:
    def replica(scale: float) -> dict:
        lines = {"prepare": [([1.0], 0.1 * scale)], "encode": [([1.0, n], 0.5 + n) for n in (1.0, 2.0, 4.0)]}
        lines |= {"prefill": [([1.0, n], 0.25 + 0.01 * n) for n in (100.0, 300.0)]}
        lines |= {
            "decode": [([1.0, r, r * 10 * c], 0.1 + 0.01 * r + 1e-4 * r * 10 * c) for r in (1.0, 2.0) for c in (1, 9)]
        }
        return {"samples": lines, "rest": 0.01 * scale}

    times = fit_times([replica(1.0), replica(3.0)])
    assert times.prepare == pytest.approx(0.2 + 0.02)
    found = (times.encode, times.encode_per_token, times.prefill, times.prefill_per_token)
    assert found == pytest.approx((0.5, 1.0, 0.25, 0.01))
    assert (times.decode, times.decode_per_row, times.decode_per_context) == pytest.approx((0.1, 0.01, 1e-4))


def test_percentiles_are_of_times_since_arrival() -> None:
    jobs = [(float(at), at + 1.0 + at / 10, at + 2.0 + at / 10) for at in range(10)]
    assert describe(jobs) == pytest.approx([1.4, 1.9, 2.4, 2.9, 10 / 11.9])
