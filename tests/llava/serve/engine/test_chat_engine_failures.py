"""What fails for one request of a batch fails for it alone: its neighbours get the answers that they get alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import torch

from llava.eval.run import generate
from llava.eval.run.answerer import Answerer
from llava.model.vision.image_tokens import ImageTokens
from llava.serve.engine import ChatEngine, continuous, sampling
from llava.serve.engine.answer_stream import AnswerStream
from llava.serve.engine.detokenize import Detokenizer, StopFilter
from llava.serve.engine.errors import GenerationError
from llava.serve.engine.generate import Row
from llava.serve.engine.params import EngineLimits, Sampling
from llava.serve.engine.sampling import RowSampler
from tests.llava.serve.openai.serving import CHAT, DEADLINE, QUESTION, Gate, api, becomes_idle, body, loaded, picture

ROWS = 3
CULPRIT = 1
SAMPLINGS = [
    Sampling(1.2, seed=1, max_new_tokens=6),
    Sampling(0.9, seed=2, max_new_tokens=8),
    Sampling(0, max_new_tokens=7),
]


@pytest.fixture
def engine() -> Iterator[ChatEngine]:
    engine = ChatEngine(*loaded(), limits=EngineLimits(max_prefix_mib=0))  # every picture is encoded
    yield engine
    engine.close()


def ask(engine: ChatEngine, settings: Sampling) -> AnswerStream:
    return engine.submit(engine.question(QUESTION, 1), [picture()], settings)


def outcome(answer: AnswerStream) -> str | type[Exception]:
    """The answer, or what its reader gets in its place."""
    try:
        return "".join(answer)
    except GenerationError as error:
        return type(error.__cause__)


@pytest.fixture(scope="module")
def alone() -> list[Any]:
    """What each request gets alone."""
    engine = ChatEngine(*loaded())
    answers = [outcome(ask(engine, each)) for each in SAMPLINGS]
    engine.close()
    return answers


def together(engine: ChatEngine, spoil: Callable[[list[AnswerStream]], None]) -> tuple[list[Any], list[int]]:
    """What comes of three requests that are answered together, and the sizes of all batches, a first one's included."""
    assert becomes_idle(engine)  # else the first one may join the end of an earlier run, which no gate holds
    with Gate(engine) as gate:
        first = ask(engine, Sampling(0, max_new_tokens=1))  # ends before the others join
        assert gate.reached.wait(DEADLINE)
        answers = [ask(engine, each) for each in SAMPLINGS]
        spoil(answers)
        gate.opened.set()
        assert isinstance(outcome(first), str)
        return [outcome(answer) for answer in answers], gate.batches


class Spoilt(Exception):
    """What a test lets happen."""


def raising(*args: object) -> Any:
    raise Spoilt("/secret")


def after(calls: int, work: Callable[..., Any]) -> Callable[..., Any]:
    """Some work that fails after some calls."""
    left = iter(range(calls))

    def limited(*args: Any) -> Any:
        return raising() if next(left, None) is None else work(*args)

    return limited


def spoil_take(row: Row) -> None:
    row.take = after(2, row.take)  # type: ignore[method-assign]


def spoil_emit(row: Row) -> None:
    row.emit = after(1, row.emit)


def spoil_detokenizer(row: Row) -> None:
    row._text.push = after(3, row._text.push)  # type: ignore[method-assign]


def spoil_stop_filter(row: Row) -> None:
    row._stop.push = raising  # type: ignore[method-assign]


def spoil_end(row: Row) -> None:
    row._text.finish = raising  # type: ignore[method-assign]


def spoil_cancelling(row: Row) -> None:
    row._stop.finish = raising  # type: ignore[method-assign]
    row.cancelled.set()


SPOILS = [spoil_take, spoil_emit, spoil_detokenizer, spoil_stop_filter, spoil_end, spoil_cancelling]


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_row_that_cannot_take_its_token_fails_alone(
    engine: ChatEngine, alone: list[Any], spoil: Callable[[Row], None]
) -> None:
    found, batches = together(engine, lambda answers: spoil(answers[CULPRIT].row))
    assert found == [alone[0], Spoilt, alone[2]]
    assert batches == [1, ROWS]


def test_a_row_that_cannot_be_sampled_fails_alone(
    engine: ChatEngine, alone: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = sampling.sample

    def fail_for_one(logits: torch.Tensor, temperature: torch.Tensor, *others: Any) -> torch.Tensor:
        return raising() if temperature.isclose(torch.tensor(0.9)).any() else sample(logits, temperature, *others)

    monkeypatch.setattr(sampling, "sample", fail_for_one)
    found, batches = together(engine, lambda _: None)
    assert found == [alone[0], Spoilt, alone[2]]
    assert batches == [1, ROWS]


@pytest.mark.parametrize(
    ("first_step", "culprit"), [(1, 1), (3, 1), (3, 2)], ids=["sampled, first", "sampled", "greedy"]
)
def test_logits_that_are_no_numbers_fail_their_own_row(
    engine: ChatEngine, alone: list[Any], monkeypatch: pytest.MonkeyPatch, first_step: int, culprit: int
) -> None:
    """The model's head gives NaN for one row from some step of the batch."""
    steps = 0

    def spoil(module: Any, args: Any, logits: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        if len(logits) == ROWS:
            steps += 1
            if steps >= first_step:
                logits[culprit] = torch.nan
        return logits

    hook = engine.model.lm_head.register_forward_hook(spoil)
    try:
        found, batches = together(engine, lambda _: None)
    finally:
        hook.remove()
    assert found == [*alone[:culprit], ArithmeticError, *alone[culprit + 1 :]]
    assert batches == [1, ROWS]


def test_a_picture_of_no_numbers_fails_its_own_request(
    engine: ChatEngine, alone: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN in the features of one picture passes through the language model together with the others' rows."""
    encode = engine.vision.encode

    def spoil(answers: list[AnswerStream]) -> None:
        (culprit,) = answers[CULPRIT].views

        def spoilt(views: Sequence[Any]) -> list[ImageTokens]:
            return [
                tokens.with_features(tokens.features * torch.nan) if view is culprit else tokens
                for view, tokens in zip(views, encode(views), strict=True)
            ]

        monkeypatch.setattr(engine.vision, "encode", spoilt)

    found, batches = together(engine, spoil)
    assert found == [alone[0], ArithmeticError, alone[2]]
    assert batches == [1, ROWS]


# The whole batch


@pytest.mark.parametrize("part", ["images", "prompts"])
def test_requests_that_fail_before_their_answers_begin_are_tried_one_by_one(
    engine: ChatEngine, alone: list[Any], monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    culprits: list[Any] = []
    groups: list[int] = []
    encode, place = engine.vision.encode, continuous.place_prompt

    def encode_or_fail(views: Sequence[Any]) -> list[ImageTokens]:
        groups.append(len(views))
        return raising() if any(view is culprits[0] for view in views) else encode(views)

    def place_or_fail(model: Any, ids: torch.Tensor, *rest: Any) -> Any:
        return raising() if len(ids) == culprits[0] else place(model, ids, *rest)

    def spoil(answers: list[AnswerStream]) -> None:
        if part == "images":
            culprits.extend(answers[CULPRIT].views)
            monkeypatch.setattr(engine.vision, "encode", encode_or_fail)
        else:
            row = answers[CULPRIT].row
            row.prompt = torch.cat([row.prompt, row.prompt[-1:]])
            culprits.append(len(row.prompt))
            monkeypatch.setattr(continuous, "place_prompt", place_or_fail)

    found, batches = together(engine, spoil)
    assert found == [alone[0], Spoilt, alone[2]]
    assert batches == [1, ROWS]
    assert groups in ([], [1, ROWS, 1, 1, 1])


def test_a_request_that_ended_before_the_others_failed_is_not_tried_again(
    engine: ChatEngine, alone: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, groups = engine.vision.encode, list[int]()

    def spoil(answers: list[AnswerStream]) -> None:
        def fail_together(views: Sequence[Any]) -> list[ImageTokens]:
            groups.append(len(views))
            if len(views) < ROWS:
                return encode(views)
            answers[0].row.cancelled.set()
            assert answers[0].row.finished()
            return raising()

        monkeypatch.setattr(engine.vision, "encode", fail_together)

    found, batches = together(engine, spoil)
    assert (found[0], found[2]) == ("", alone[2])
    assert batches == [1, ROWS]
    assert groups == [1, ROWS, 1, 1]


def test_answers_that_have_begun_are_not_begun_again(engine: ChatEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    step = RowSampler.__call__
    calls = after(3, step)

    def limited(self: RowSampler, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return calls(self, ids, scores) if len(scores) == ROWS else step(self, ids, scores)

    monkeypatch.setattr(RowSampler, "__call__", limited)
    found, batches = together(engine, lambda _: None)
    assert found == [Spoilt] * ROWS
    assert batches == [1, ROWS]


def test_a_run_without_readers_gets_what_failed_in_a_row(engine: ChatEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation must not take the beginning of an answer for all of it."""
    monkeypatch.setattr(Detokenizer, "push", after(3, Detokenizer.push))
    with torch.inference_mode():
        pictures = engine.model.encode_tokens(list(engine.prepare_images([picture()])))
    prompt = generate.prompt_ids(engine, QUESTION, 1)
    (error,) = generate.generate(engine, [prompt], pictures, Sampling(0, max_new_tokens=8))
    assert isinstance(error, GenerationError) and type(error.__cause__) is Spoilt
    answerer = Answerer(engine, max_new_tokens=8)
    with pytest.raises(GenerationError, match=r"the model failed \(Spoilt\)"):
        answerer.answer(pictures, [(0, QUESTION)])


@pytest.mark.parametrize("stream", [False, True])
def test_the_client_of_a_failing_row_gets_500_and_the_others_their_answers(
    monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    push = StopFilter.push

    def fail_for_one(self: StopFilter, piece: str) -> str:
        return raising() if "zebra" in self.stops else push(self, piece)

    monkeypatch.setattr(StopFilter, "push", fail_for_one)
    with api() as (engine, client), ThreadPoolExecutor(ROWS) as pool, Gate(engine, opens_at=ROWS) as gate:

        def post(stop: str) -> httpx.Response:
            return client.post(CHAT, json=body(stop=stop, stream=stream, max_tokens=4))

        spoilt, *good = [pool.submit(post, stop) for stop in ("zebra", "x", "y")]
        reply = spoilt.result(DEADLINE)
        assert reply.status_code == (200 if stream else 500)
        assert '"code":"model_failed"' in reply.text.replace(" ", "")
        assert "secret" not in reply.text
        for future in good:
            assert future.result(DEADLINE).status_code == 200
            assert "model_failed" not in future.result().text
        assert sum(gate.batches) == ROWS
