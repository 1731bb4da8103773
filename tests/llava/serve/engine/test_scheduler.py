"""Requests are answered in order, in batches within the limits, and every request ends."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from PIL import Image

from llava.serve.engine import chat_engine, scheduler
from llava.serve.engine.answer_stream import AnswerStream
from llava.serve.engine.errors import EngineClosedError, GenerationError, OverloadedError
from llava.serve.engine.params import GROWTH, QLIPOptions, Sampling
from tests.llava.serve.engine.engines import FIRST_ANSWER, GREEDY, Hold, NewEngine, submit
from tests.llava.serve.openai.serving import DEADLINE, QUESTION, Gate, picture


@pytest.mark.parametrize(("last_batch", "batches"), [(1000.0, [2]), (0.0, [1, 1])])
def test_a_batch_waits_for_requests_in_preparation_for_a_share_of_the_last_batchs_time(
    new_engine: NewEngine,
    pictures: list[Image.Image],
    monkeypatch: pytest.MonkeyPatch,
    last_batch: float,
    batches: list[int],
) -> None:
    engine = new_engine(joins=False)
    monkeypatch.setattr(engine.scheduler, "_batch_seconds", last_batch)
    monkeypatch.setattr(scheduler, "MAX_JOIN_WAIT", DEADLINE)  # so that a slow machine has time to prepare
    prepare, preparing, go_on = engine.vision.prepare, threading.Event(), threading.Event()

    def prepare_slowly(*args: Any) -> Any:
        preparing.set()
        assert go_on.wait(DEADLINE)
        return prepare(*args)

    monkeypatch.setattr(engine.vision, "prepare", prepare_slowly)
    with Gate(engine) as gate, ThreadPoolExecutor(1) as other:
        late = other.submit(submit, engine, pictures[0])
        assert preparing.wait(DEADLINE)
        monkeypatch.setattr(engine.vision, "prepare", prepare)
        early = submit(engine, pictures[0])
        if last_batch == 0:
            assert gate.reached.wait(DEADLINE)
        go_on.set()
        answers = [early, late.result(DEADLINE)]
        gate.opened.set()
        assert len({"".join(answer) for answer in answers}) == 1
        assert gate.batches == batches


def test_batches_keep_the_limits_and_the_order(new_engine: NewEngine, hold: Hold, pictures: list[Image.Image]) -> None:
    engine = new_engine(joins=False, max_batch=3, max_batch_tokens=330)
    gate, _ = hold(engine)  # 79 visual tokens each, 64 on CLIP's grid, 44 of text
    two = Sampling(temperature=0, max_new_tokens=2)
    waiting = [submit(engine, pictures[0], sampling=two) for _ in range(3)]
    clip = [submit(engine, pictures[0], sampling=two, qlip=QLIPOptions(enabled=False)) for _ in range(4)]
    beams = submit(engine, pictures[0], sampling=Sampling(temperature=0, num_beams=2, max_new_tokens=2))
    last = submit(engine, pictures[0], sampling=two)
    assert engine.waiting == 9
    assert engine.running == 1
    gate.opened.set()
    texts = ["".join(answer) for answer in [*waiting, *clip, beams, last]]
    assert gate.batches == [1, 2, 2, 3, 1, 1]
    assert len(set(texts[:3])) == len(set(texts[3:7])) == 1


def test_requests_join_within_the_limits_and_in_order(
    new_engine: NewEngine, hold: Hold, pictures: list[Image.Image]
) -> None:
    """All are of one token, so that each group has ended when the next one joins."""
    engine = new_engine(max_batch=3, max_batch_tokens=330 + 2 * GROWTH, max_join_tokens=300)
    gate, first = hold(engine)  # 79 visual tokens each and 64 on CLIP's grid, 44 of text
    first.row.sampling = one = Sampling(temperature=0, max_new_tokens=1)
    quadtrees = [submit(engine, pictures[0], sampling=one) for _ in range(3)]
    clip = [submit(engine, pictures[0], sampling=one, qlip=QLIPOptions(enabled=False)) for _ in range(4)]
    beams = submit(engine, pictures[0], sampling=Sampling(temperature=0, num_beams=2, max_new_tokens=1))
    last = submit(engine, pictures[0], sampling=one)
    gate.opened.set()
    texts = ["".join(answer) for answer in [*quadtrees, *clip, beams, last]]
    assert gate.batches == [1, 2, 2, 2, 1, 1, 1]
    assert len(set(texts[:3])) == len(set(texts[3:7])) == 1


@pytest.mark.parametrize("length", [1, 5])
def test_a_beam_search_that_has_waited_is_a_beam_search(
    new_engine: NewEngine, hold: Hold, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    engine, searched = new_engine(), []
    generate_rows = chat_engine.generate_rows
    monkeypatch.setattr(
        chat_engine,
        "generate_rows",
        lambda model, rows, *rest, **options: (
            searched.append([row.sampling.num_beams for row in rows]) or generate_rows(model, rows, *rest, **options)
        ),
    )
    gate, first = hold(engine)
    first.row.sampling = one = Sampling(temperature=0, max_new_tokens=length)
    beams = Sampling(temperature=0, num_beams=3, max_new_tokens=4)
    waiting = [submit(engine, pictures[0], sampling=sampling) for sampling in (beams, one, beams)]
    gate.opened.set()
    texts = ["".join(answer) for answer in waiting]
    assert searched == [[3], [3]]
    assert texts[0] == texts[2] == "".join(submit(new_engine(), pictures[0], sampling=beams))


@pytest.mark.parametrize("joins", [False, True])
def test_tokens_of_text_are_counted_and_a_longer_prompt_runs_alone(
    new_engine: NewEngine, hold: Hold, joins: bool
) -> None:
    one, growth = Sampling(temperature=0, max_new_tokens=1), GROWTH if joins else 0
    engine = new_engine(joins=joins, max_batch_tokens=75 + 2 * growth, max_join_tokens=1000)
    gate, first = hold(engine)
    first.row.sampling = one
    short = [engine.submit("one two three " * 4, [], one) for _ in range(4)]
    long = engine.submit("one two three " * 80, [], one)
    last = engine.submit("one two three " * 4, [], one)
    tokens = [answer.usage.prompt_tokens for answer in (*short, long, last)]
    assert 2 * tokens[0] <= 75 < 3 * tokens[0] and tokens[4] > 75 + 2 * growth
    gate.opened.set()
    for answer in (first, *short, long, last):
        list(answer)  # to its end
    assert gate.batches == [1, 2, 2, 1, 1]


def test_a_full_queue_refuses_a_request_and_answers_the_others(
    new_engine: NewEngine, hold: Hold, pictures: list[Image.Image]
) -> None:
    engine = new_engine(max_waiting=2)
    gate, first = hold(engine)
    waiting = [submit(engine, pictures[0]) for _ in range(2)]
    with pytest.raises(OverloadedError, match="2 requests are waiting already") as refused:
        submit(engine, pictures[0])
    assert 1 <= refused.value.retry_after <= 60
    gate.opened.set()
    assert {"".join(answer) for answer in [first, *waiting]} == {FIRST_ANSWER}
    assert "".join(submit(engine, pictures[0])) != ""


def test_an_invalid_request_takes_no_place_in_the_queue(new_engine: NewEngine, pictures: list[Image.Image]) -> None:
    engine = new_engine(max_waiting=1)
    for _ in range(3):
        with pytest.raises(ValueError, match="holds 0 <image>, but 1 images"):
            engine.submit("Hi", pictures[:1], GREEDY)
    assert engine.waiting == 0
    assert "".join(submit(engine, pictures[0])) != ""


def test_shorten_reduces_max_new_tokens_to_what_fits_the_context(
    new_engine: NewEngine, pictures: list[Image.Image]
) -> None:
    engine = new_engine()
    endless = Sampling(temperature=0, max_new_tokens=5000)
    with pytest.raises(ValueError, match="answer of up to 5000 exceed the model's context of 2048"):
        submit(engine, pictures[0], sampling=endless)
    answer = submit(engine, pictures[0], sampling=endless, shorten=True)
    usage = answer.usage
    assert answer.row.sampling.max_new_tokens == 2048 - usage.text_tokens - usage.visual_tokens
    answer.close()


@pytest.mark.parametrize("when", ["waiting", "running"])
def test_a_cancelled_request_ends_and_leaves_the_queue(
    new_engine: NewEngine, hold: Hold, pictures: list[Image.Image], when: str
) -> None:
    engine = new_engine()
    gate, first = hold(engine)
    second = submit(engine, pictures[0])
    gone, kept = (second, first) if when == "waiting" else (first, second)
    gone.cancel()
    if when == "waiting":
        assert list(gone) == []
        assert engine.waiting == 0
    gate.opened.set()
    assert "".join(kept) == FIRST_ANSWER
    assert "".join(gone) == ""
    assert gone.finish_reason == "cancelled"
    engine.close()
    assert (engine.waiting, engine.running) == (0, 0)


def test_closing_answers_queued_requests_and_refuses_new_ones(
    new_engine: NewEngine, hold: Hold, pictures: list[Image.Image]
) -> None:
    engine = new_engine()
    gate, first = hold(engine)
    second = submit(engine, pictures[0])
    closing = threading.Thread(target=engine.close)
    closing.start()
    gate.opened.set()
    closing.join(DEADLINE)
    assert "".join(first) == "".join(second) != ""
    with pytest.raises(EngineClosedError, match="shutting down"):
        submit(engine, pictures[0])


def test_a_batch_out_of_memory_is_retried_in_halves(
    new_engine: NewEngine, hold: Hold, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine(joins=False)
    gate, _ = hold(engine)
    held = engine._generate

    def small_memory(batch: Sequence[AnswerStream]) -> None:
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        held(batch)

    monkeypatch.setattr(engine, "_generate", small_memory)
    two = Sampling(temperature=0, max_new_tokens=2)
    answers = [submit(engine, picture, sampling=two) for picture in pictures + pictures[:1]]
    gate.opened.set()
    assert all("".join(answer) for answer in answers)
    assert gate.batches == [1, 2, 1, 2]


def test_a_failing_batch_raises_for_each_reader_and_the_next_is_answered(
    new_engine: NewEngine, hold: Hold, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine(joins=False)
    gate, first = hold(engine)
    held = engine._generate
    failures = [torch.OutOfMemoryError("CUDA"), RuntimeError("cuDNN at 0x7f00")]

    def failing(batch: Sequence[AnswerStream]) -> None:
        if failures:
            raise failures.pop(0)
        held(batch)

    monkeypatch.setattr(engine, "_generate", failing)
    one = submit(engine, pictures[0])
    gate.opened.set()
    with pytest.raises(GenerationError, match="ran out of memory; shorten the prompt"):
        list(one)
    with pytest.raises(GenerationError, match=r"the model failed \(RuntimeError\)"):
        list(submit(engine, pictures[0]))
    assert "".join(submit(engine, pictures[0])) == "".join(first)


def test_a_batch_waits_at_most_half_a_second_for_requests_in_preparation(
    new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request's image is opened only after the other one's batch has begun."""
    assert scheduler.MAX_JOIN_WAIT == 0.5
    engine = new_engine(joins=False)
    opening, go_on = threading.Event(), threading.Event()

    def open_late() -> Any:
        opening.set()
        assert go_on.wait(DEADLINE)
        return picture()

    monkeypatch.setattr(engine.scheduler, "_batch_seconds", 100.0 * DEADLINE)
    with ThreadPoolExecutor(1) as pool, Gate(engine) as gate:
        late = pool.submit(engine.submit, engine.question(QUESTION, 1), [open_late], GREEDY)
        assert opening.wait(DEADLINE)
        early = submit(engine, picture())
        assert gate.reached.wait(DEADLINE)
        go_on.set()
        gate.opened.set()
        assert "".join(early) == "".join(late.result(DEADLINE))
        assert gate.batches == [1, 1]
