"""Requests join a batch between tokens, in bounded pieces, and memory that runs out delays some of them only."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import cycle
from typing import Any

import pytest
import torch
from PIL import Image

from llava.serve.engine import ChatEngine, continuous
from llava.serve.engine.answer_stream import AnswerStream
from llava.serve.engine.errors import GenerationError
from llava.serve.engine.params import Sampling
from llava.serve.engine.streams import Stream, TokenChooser
from tests.llava.serve.engine.engines import FIRST_ANSWER, GREEDY, Hold, NewEngine, NotePasses, submit
from tests.llava.serve.openai.serving import becomes_idle, loaded

SAMPLINGS = [
    GREEDY,
    Sampling(1.2, seed=1, max_new_tokens=12, repetition_penalty=1.2),
    Sampling(0.9, seed=2, max_new_tokens=12, logprobs=2),
    Sampling(0, max_new_tokens=12, repetition_penalty=1.5),
]


@pytest.fixture(scope="module")
def expected(pictures: list[Image.Image]) -> list[tuple[str, str | None, list[float]]]:
    """What transformers' `generate` answers to questions about all pictures, with one sampling after another."""
    engine = ChatEngine(*loaded(), joins=False)
    told = tell([submit(engine, picture, sampling=each) for picture, each in zip(pictures, cycle(SAMPLINGS))])
    engine.close()
    return told


def tell(answers: list[AnswerStream]) -> list[tuple[str, str | None, list[float]]]:
    """The texts, why they ended, and the log-probabilities."""
    seen = []
    for answer in answers:
        text = "".join(answer)
        seen.append((text, answer.finish_reason, [round(each.token.logprob, 3) for each in answer.row.logprobs]))
    return seen


def test_a_request_that_comes_amid_a_long_answer_is_answered_before_its_end(
    new_engine: NewEngine, hold: Hold, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, later, open_at_end = new_engine(), list[AnswerStream](), list[bool]()
    expected = [FIRST_ANSWER, "".join(submit(engine, pictures[1]))]
    gate, long = hold(engine)
    take, end = long.row.take, long.row.on_end

    def take_and_submit(token: int, logprobs: None) -> None:
        take(token, logprobs)
        if long.row.generated == 4:
            later.append(submit(engine, pictures[1], sampling=Sampling(temperature=0, max_new_tokens=3)))

    def note_end() -> None:
        open_at_end.append(not later[0].row.ended)
        end()

    monkeypatch.setattr(long.row, "take", take_and_submit)
    monkeypatch.setattr(long.row, "on_end", note_end)
    gate.opened.set()
    assert "".join(long) == expected[0]
    assert expected[1].startswith("".join(later[0]))
    assert open_at_end == [False]


@pytest.mark.parametrize("most", [64, 400])
def test_work_between_two_tokens_of_a_running_answer_is_bounded(
    new_engine: NewEngine, hold: Hold, pictures: list[Image.Image], passes: NotePasses, most: int
) -> None:
    engine = new_engine(max_join_tokens=most)
    gate, first = hold(engine)
    noted = passes(engine)
    others = [submit(engine, picture) for picture in pictures]
    gate.opened.set()
    list(first)
    assert all("".join(answer) for answer in others)
    joins = [tokens > 1 for _, tokens in noted]
    assert max(rows * tokens for rows, tokens in noted) <= most
    while_running = joins[joins.index(False) :]
    assert any(while_running)
    assert not any(map(operator.and_, while_running, while_running[1:]))  # no two pieces without a token between them


@pytest.mark.parametrize("where", ["tokens", "prompts", "both"])
def test_out_of_memory_delays_some_requests_and_all_get_their_answers(
    new_engine: NewEngine,
    hold: Hold,
    pictures: list[Image.Image],
    passes: NotePasses,
    expected: list[tuple[str, str | None, list[float]]],
    where: str,
) -> None:
    engine = new_engine()
    steps = 0

    def run_out(rows: int, tokens: int) -> None:
        nonlocal steps
        steps += tokens == 1 and rows > 2
        if where != "prompts" and tokens == 1 and rows > 2 and steps > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if where != "tokens" and tokens > 1 and (rows > 2 or len(engine._batch._running.streams) > 3):
            raise torch.OutOfMemoryError("CUDA out of memory")

    gate, first = hold(engine)
    noted = passes(engine, run_out)
    answers = [submit(engine, picture, sampling=each) for picture, each in zip(pictures, cycle(SAMPLINGS))]
    gate.opened.set()
    assert tell(answers) == expected
    assert all(answer.usage.prefill_seconds > 0 for answer in answers)  # until the first token, not a later start
    assert "".join(first)
    assert max(rows for rows, _ in noted) > 1
    assert becomes_idle(engine)


def test_a_request_that_does_not_fit_alone_fails_and_the_others_are_answered(
    new_engine: NewEngine, hold: Hold, pictures: list[Image.Image], passes: NotePasses
) -> None:
    engine = new_engine()

    def run_out(rows: int, tokens: int) -> None:
        if rows * tokens > 400:
            raise torch.OutOfMemoryError("CUDA out of memory")

    gate, first = hold(engine)
    passes(engine, run_out)
    large = engine.submit(engine.question("quartz " * 150, 1), pictures[:1], GREEDY)
    small = submit(engine, pictures[0])
    gate.opened.set()
    with pytest.raises(GenerationError, match="ran out of memory"):
        list(large)
    assert large.row.error.__cause__.__traceback__ is None  # it would hold the tensors that did not fit
    assert "".join(first) == "".join(small) == FIRST_ANSWER


@pytest.mark.parametrize("moves", [True, False], ids=["kept rows are moved", "no memory to move them"])
def test_a_request_that_joins_waits_before_running_answers_do(
    new_engine: NewEngine,
    hold: Hold,
    pictures: list[Image.Image],
    passes: NotePasses,
    monkeypatch: pytest.MonkeyPatch,
    moves: bool,
) -> None:
    """Memory runs out once as a long prompt joins, and once more as answers run: then half of them wait too."""
    engine = new_engine(max_join_tokens=400)
    expected = "".join(submit(engine, pictures[0]))
    shortages = []

    def run_out(rows: int, tokens: int) -> None:
        batch = engine._batch
        if tokens == 1 and rows == 2 and len(shortages) < 3 and (shortages or len(batch._joining) == 1):
            shortages.append((batch._join is not None, len(batch._suspended)))
            raise torch.OutOfMemoryError("CUDA out of memory")

    def fail() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    gate, first = hold(engine)
    passes(engine, run_out)
    if not moves:
        monkeypatch.setattr(engine._batch._running.cache, "shrink", fail)
    second = submit(engine, pictures[0])
    long = engine.submit(engine.question("quartz " * 150, 1), pictures[:1], GREEDY)
    gate.opened.set()
    assert "".join(first) == "".join(second) == expected
    assert long.finish_reason == "stop" if "".join(long) else long.finish_reason == "length"
    assert shortages == [(True, 0), (True, 0), (False, 1)]  # earlier prompts, the one that joins, half of the rows


def test_requests_that_joined_in_parts_do_not_join_twice(
    new_engine: NewEngine, hold: Hold, pictures: list[Image.Image], passes: NotePasses
) -> None:
    """Prompts fit one at a time only, and memory runs out once more when one of two runs and the other still joins."""
    engine, joined = new_engine(max_prefix_mib=0), list[int]()
    expected = [FIRST_ANSWER, "".join(submit(engine, pictures[1]))]

    def run_out(rows: int, tokens: int) -> None:
        batch = engine._batch
        parted = tokens == 1 and not joined and any(stream in batch._running.streams for stream in batch._joining)
        if parted:
            joined.append(len(batch._joining))
        if parted or (tokens > 1 and rows > 1):
            raise torch.OutOfMemoryError("CUDA out of memory")

    gate, first = hold(engine)
    passes(engine, run_out)
    answers = [submit(engine, picture) for picture in pictures[:2]]
    gate.opened.set()
    assert ["".join(answer) for answer in (first, *answers)] == [expected[0], *expected]
    assert joined == [2]


def test_requests_whose_tokens_could_not_be_chosen_yet_are_not_added_twice(
    new_engine: NewEngine, hold: Hold, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, shortages = new_engine(max_prefix_mib=0), list[int]()
    expected = [FIRST_ANSWER, "".join(submit(engine, pictures[1]))]

    def choose(model: Any, streams: Sequence[Stream], device: torch.device) -> TokenChooser:
        if len(streams) == 2 and not shortages:
            shortages.append(len(streams))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return TokenChooser(model, streams, device)

    gate, first = hold(engine)
    monkeypatch.setattr(continuous, "TokenChooser", choose)
    answers = [submit(engine, picture) for picture in pictures[:2]]
    gate.opened.set()
    assert ["".join(answer) for answer in (first, *answers)] == [expected[0], *expected]
    assert shortages == [2]


def test_keys_and_values_for_which_there_is_no_memory_are_not_kept(
    new_engine: NewEngine, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    engine = new_engine()
    monkeypatch.setattr(engine._batch._running.cache, "read", fail)
    assert ["".join(submit(engine, pictures[0])) for _ in range(2)] == [FIRST_ANSWER] * 2


def test_a_suspended_request_that_is_cancelled_ends(
    new_engine: NewEngine, hold: Hold, pictures: list[Image.Image], passes: NotePasses
) -> None:
    engine = new_engine()
    gate, first = hold(engine)
    second = submit(engine, pictures[0])

    def run_out(rows: int, tokens: int) -> None:
        if engine._batch._suspended:
            second.row.cancelled.set()
        if rows > 1 and tokens == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    passes(engine, run_out)
    gate.opened.set()
    assert "".join(first) == FIRST_ANSWER
    assert len("".join(second)) < len(FIRST_ANSWER) and second.finish_reason == "cancelled"


def test_a_prompt_whose_request_is_cancelled_is_not_run_to_its_end(
    new_engine: NewEngine, hold: Hold, pictures: list[Image.Image], passes: NotePasses
) -> None:
    engine = new_engine(max_join_tokens=20)
    gate, first = hold(engine)
    noted = passes(engine, lambda rows, tokens: first.row.cancelled.set())
    gate.opened.set()
    assert "".join(first) == "" and first.finish_reason == "cancelled"
    assert becomes_idle(engine) and len(noted) == 1


def test_a_checkpoint_whose_generation_config_changes_logits_is_left_to_transformers(
    new_engine: NewEngine, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert new_engine().scheduler.joins
    monkeypatch.setattr(loaded()[1].generation_config, "no_repeat_ngram_size", 2)
    engine = new_engine()
    assert not engine.scheduler.joins
    assert "".join(submit(engine, pictures[0])) != ""


def test_a_fault_of_the_batch_itself_ends_every_answer(
    new_engine: NewEngine, hold: Hold, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine()
    gate, first = hold(engine)
    second = submit(engine, pictures[0])
    monkeypatch.setattr(engine._batch, "_step", lambda: engine._batch._running.streams and 1 / 0)
    gate.opened.set()
    for answer in (first, second):
        with pytest.raises(GenerationError, match=r"the model failed \(ZeroDivisionError\)"):
            list(answer)
    monkeypatch.undo()
    assert "".join(submit(engine, pictures[0])) == FIRST_ANSWER
