"""Requests that wait are answered together, each as it would be alone; nobody is lost, forgotten or overtaken."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from PIL import Image

from llava.images import ImageError, load_image
from llava.model.builder import load_pretrained_model
from llava.serve.engine import ChatEngine, scheduler
from llava.serve.engine.answer_stream import Answer
from llava.serve.engine.errors import EngineClosed, GenerationError, Overloaded, ran_out_of_memory
from llava.serve.engine.params import EngineLimits, QLIPOptions, Sampling
from llava.utils import demo_model_path, demo_picture_path

GREEDY = Sampling(temperature=0, max_new_tokens=32)
DEADLINE = 600  # seconds; a test that waits longer has failed


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, ...]:
    return load_pretrained_model(demo_model_path(), device="cpu")


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [load_image(path) for path in sorted(demo_picture_path().parent.glob("*.png"))]


class Gate:
    """Holds the model back until it is opened, and notes the size of each batch that goes through."""

    def __init__(self, engine: ChatEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened, self.reached, self.batches = threading.Event(), threading.Event(), list[int]()
        generate = engine._generate

        def held(batch: Sequence[Answer]) -> None:
            self.batches.append(len(batch))
            self.reached.set()
            assert self.opened.wait(DEADLINE)
            generate(batch)

        monkeypatch.setattr(engine, "_generate", held)


@pytest.fixture
def new_engine(loaded: tuple[Any, ...]) -> Iterator[Callable[..., ChatEngine]]:
    """Makes engines on the embedded model, and closes them behind the test."""
    engines: list[ChatEngine] = []

    def make(**limits: int) -> ChatEngine:
        engines.append(ChatEngine(*loaded, limits=EngineLimits(**limits)))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def submit(
    engine: ChatEngine, picture: Image.Image, question: str = "What is in the picture?", **options: Any
) -> Answer:
    options = {"sampling": GREEDY, **options}
    return engine.submit(engine.question(question, 1), [picture], **options)


def hold(engine: ChatEngine, picture: Image.Image, monkeypatch: pytest.MonkeyPatch) -> tuple[Gate, Answer]:
    """A gate with one request in front of it, so that all that follow wait."""
    gate = Gate(engine, monkeypatch)
    first = submit(engine, picture)
    assert gate.reached.wait(DEADLINE)
    return gate, first


# Together as alone

REQUESTS: list[dict[str, Any]] = [
    {},
    {"question": "How many shapes are there?"},
    {"sampling": Sampling(temperature=0, max_new_tokens=3)},
    {"sampling": Sampling(temperature=0, stop=(" and", "triangle"))},
    {"sampling": Sampling(temperature=1.2, top_p=0.9, seed=5, max_new_tokens=32)},
    {"sampling": Sampling(temperature=1.2, seed=6, max_new_tokens=20)},
    {"qlip": QLIPOptions(enabled=False)},
    {"qlip": QLIPOptions(max_tokens=70)},
    {"qlip": QLIPOptions(alpha=0.3, image_size=112)},
]


def test_each_answer_of_a_batch_is_as_it_is_alone(
    new_engine: Callable[..., ChatEngine], pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [(picture, request) for request in REQUESTS for picture in pictures]
    engine = new_engine(max_batch=1)
    alone = [submit(engine, picture, **request) for picture, request in requests]
    expected = [("".join(answer), answer.finish_reason, answer.usage.generated_tokens) for answer in alone]
    engine = new_engine(max_batch=len(requests), max_batch_tokens=100_000)
    gate, first = hold(engine, pictures[0], monkeypatch)
    together = [submit(engine, picture, **request) for picture, request in requests]
    gate.opened.set()
    found = [("".join(answer), answer.finish_reason, answer.usage.generated_tokens) for answer in together]
    assert found == expected
    assert gate.batches == [1, len(requests)]
    assert "".join(first) == expected[0][0]


def test_one_model_sees_as_clip_and_by_quadtree(
    new_engine: Callable[..., ChatEngine], pictures: list[Image.Image]
) -> None:
    """The oracle for CLIP's view is the CLIP tower itself."""
    clip = ChatEngine(*load_pretrained_model(demo_model_path(), device="cpu", qlip=False))
    engine = new_engine()
    for picture in pictures:
        answer = submit(engine, picture, qlip=QLIPOptions(enabled=False))
        oracle = submit(clip, picture)
        assert "".join(answer) == "".join(oracle)
        assert answer.usage.visual_tokens == oracle.usage.visual_tokens == 64
        (ours,), (theirs,) = engine.vision.encode(answer.views), clip.vision.encode(oracle.views)
        torch.testing.assert_close(ours.features, theirs.features, atol=1e-4, rtol=1e-4)
    assert "".join(submit(engine, pictures[0])) != "".join(submit(clip, pictures[0]))
    clip.close()


def test_an_early_end_is_told_at_once_while_the_batch_goes_on(
    new_engine: Callable[..., ChatEngine], pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine()
    gate, _ = hold(engine, pictures[0], monkeypatch)
    short = submit(engine, pictures[0], sampling=Sampling(temperature=0, max_new_tokens=1))
    long = submit(engine, pictures[0])
    taken = long.row.take

    def take_after_the_short_one(token: int) -> None:
        if long.row.generated == 1:
            assert list(short) != []  # ends, or this waits for ever
        taken(token)

    monkeypatch.setattr(long.row, "take", take_after_the_short_one)
    gate.opened.set()
    assert "".join(long).startswith("a purple ring")
    assert gate.batches == [1, 2]


def test_the_usage_counts_tokens_and_seconds(
    new_engine: Callable[..., ChatEngine], pictures: list[Image.Image]
) -> None:
    engine = new_engine()
    answer = submit(engine, pictures[0])
    text = "".join(answer)
    usage, (view,) = answer.usage, answer.views
    assert usage.generated_tokens == len(engine.tokenizer(text, add_special_tokens=False).input_ids) + 1
    assert usage.visual_tokens == view.tokens == len(view.leaves)
    assert usage.uniform_tokens == (448 // 14) ** 2
    assert usage.prompt_tokens == usage.text_tokens + usage.visual_tokens
    assert min(usage.queue_seconds, usage.image_seconds, usage.prefill_seconds, usage.seconds_per_token) > 0


# Bounds


@pytest.mark.parametrize(("last_batch", "batches"), [(1000.0, [2]), (0.0, [1, 1])])
def test_a_batch_waits_for_requests_that_are_being_prepared_a_share_of_the_last_ones_time(
    new_engine: Callable[..., ChatEngine],
    pictures: list[Image.Image],
    monkeypatch: pytest.MonkeyPatch,
    last_batch: float,
    batches: list[int],
) -> None:
    engine = new_engine()
    gate = Gate(engine, monkeypatch)
    monkeypatch.setattr(engine.queue, "_batch_seconds", last_batch)
    monkeypatch.setattr(scheduler, "MOST_PATIENCE", DEADLINE)  # so that a slow machine has time to prepare
    look, looked_at, go_on = engine.vision.look, threading.Event(), threading.Event()

    def look_slowly(*args: Any) -> Any:
        looked_at.set()
        assert go_on.wait(DEADLINE)
        return look(*args)

    monkeypatch.setattr(engine.vision, "look", look_slowly)
    with ThreadPoolExecutor(1) as other:
        late = other.submit(submit, engine, pictures[0])
        assert looked_at.wait(DEADLINE)
        monkeypatch.setattr(engine.vision, "look", look)
        early = submit(engine, pictures[0])
        if last_batch == 0:
            assert gate.reached.wait(DEADLINE)
        go_on.set()
        answers = [early, late.result(DEADLINE)]
    gate.opened.set()
    assert len({"".join(answer) for answer in answers}) == 1
    assert gate.batches == batches


def test_batches_keep_their_bounds_and_the_order(
    new_engine: Callable[..., ChatEngine], pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine(max_batch=3, max_batch_tokens=200)
    gate, _ = hold(engine, pictures[0], monkeypatch)  # 91 visual tokens each, 64 as CLIP sees
    waiting = [submit(engine, pictures[0]) for _ in range(3)]
    clip = [submit(engine, pictures[0], qlip=QLIPOptions(enabled=False)) for _ in range(4)]
    beams = submit(engine, pictures[0], sampling=Sampling(temperature=0, num_beams=2))
    last = submit(engine, pictures[0])
    assert engine.waiting == 9
    assert engine.running == 1
    gate.opened.set()
    texts = ["".join(answer) for answer in [*waiting, *clip, beams, last]]
    assert gate.batches == [1, 2, 2, 3, 1, 1]
    assert len(set(texts[:3])) == len(set(texts[3:7])) == 1


def test_one_request_too_many_is_refused_and_the_others_answered(
    new_engine: Callable[..., ChatEngine], pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine(max_waiting=2)
    gate, first = hold(engine, pictures[0], monkeypatch)
    waiting = [submit(engine, pictures[0]) for _ in range(2)]
    with pytest.raises(Overloaded, match="2 requests wait already") as refused:
        submit(engine, pictures[0])
    assert 1 <= refused.value.retry_after <= 60
    gate.opened.set()
    assert {"".join(answer) for answer in [first, *waiting]} == {"a purple ring, a cyan triangle and a blue square"}
    assert "".join(submit(engine, pictures[0])) != ""


def test_a_refused_request_takes_no_place(new_engine: Callable[..., ChatEngine], pictures: list[Image.Image]) -> None:
    engine = new_engine(max_waiting=1)
    for _ in range(3):
        with pytest.raises(ValueError, match="holds 0 <image>, but 1 images"):
            engine.submit("Hi", pictures[:1], GREEDY)
    assert engine.waiting == 0
    assert "".join(submit(engine, pictures[0])) != ""


def test_the_longest_answer_is_shortened_to_the_context_if_asked(
    new_engine: Callable[..., ChatEngine], pictures: list[Image.Image]
) -> None:
    engine = new_engine()
    endless = Sampling(temperature=0, max_new_tokens=5000)
    with pytest.raises(ValueError, match="answer of up to 5000 tokens exceed the model's context of 2048"):
        submit(engine, pictures[0], sampling=endless)
    answer = submit(engine, pictures[0], sampling=endless, shorten=True)
    usage = answer.usage
    assert answer.row.sampling.max_new_tokens == 2048 - usage.text_tokens - usage.visual_tokens
    answer.close()


# Ends


@pytest.mark.parametrize("when", ["waiting", "running"])
def test_a_cancelled_request_ends_and_leaves_no_trace(
    new_engine: Callable[..., ChatEngine], pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    engine = new_engine()
    gate, first = hold(engine, pictures[0], monkeypatch)
    second = submit(engine, pictures[0])
    gone, kept = (second, first) if when == "waiting" else (first, second)
    gone.cancel()
    if when == "waiting":
        assert list(gone) == []
        assert engine.waiting == 0
    gate.opened.set()
    assert "".join(kept) == "a purple ring, a cyan triangle and a blue square"
    assert "".join(gone) == ""
    assert gone.finish_reason == "cancelled"
    engine.close()
    assert (engine.waiting, engine.running) == (0, 0)


def test_closing_answers_what_was_taken_on_and_nothing_more(
    new_engine: Callable[..., ChatEngine], pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine()
    gate, first = hold(engine, pictures[0], monkeypatch)
    second = submit(engine, pictures[0])
    closing = threading.Thread(target=engine.close)
    closing.start()
    gate.opened.set()
    closing.join(DEADLINE)
    assert "".join(first) == "".join(second) != ""
    with pytest.raises(EngineClosed, match="shutting down"):
        submit(engine, pictures[0])


# Failures


def test_out_of_memory_is_met_with_smaller_batches(
    new_engine: Callable[..., ChatEngine], pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine()
    gate, _ = hold(engine, pictures[0], monkeypatch)
    held = engine._generate

    def small_memory(batch: Sequence[Answer]) -> None:
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        held(batch)

    monkeypatch.setattr(engine, "_generate", small_memory)
    answers = [submit(engine, picture) for picture in pictures + pictures[:1]]
    gate.opened.set()
    assert all("".join(answer) for answer in answers)
    assert gate.batches == [1, 2, 1, 2]


def test_a_failing_batch_tells_each_reader_and_the_next_goes_on(
    new_engine: Callable[..., ChatEngine], pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine()
    gate, first = hold(engine, pictures[0], monkeypatch)
    held = engine._generate
    failures = [torch.OutOfMemoryError("CUDA"), RuntimeError("cuDNN at 0x7f00")]

    def failing(batch: Sequence[Answer]) -> None:
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


# Event loops


def test_coroutines_read_side_by_side(new_engine: Callable[..., ChatEngine], pictures: list[Image.Image]) -> None:
    engine = new_engine()

    async def read(picture: Image.Image) -> str:
        answer = await engine.asubmit(engine.question("What is in the picture?", 1), [picture], GREEDY)
        return "".join([piece async for piece in answer])

    async def all_together() -> list[str]:
        return await asyncio.wait_for(asyncio.gather(*map(read, pictures)), DEADLINE)

    assert asyncio.run(all_together()) == ["".join(submit(engine, picture)) for picture in pictures]


def test_a_reader_whose_loop_is_gone_does_not_stop_the_model(
    new_engine: Callable[..., ChatEngine], pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine()
    gate, first = hold(engine, pictures[0], monkeypatch)

    async def look_once() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(anext(aiter(first)), 0.01)

    asyncio.run(look_once())
    gate.opened.set()
    assert "".join(submit(engine, pictures[0])) == "".join(first) != ""


def test_a_coroutine_cancelled_while_its_pictures_are_prepared_leaves_no_request(
    new_engine: Callable[..., ChatEngine], pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine()
    gate, first = hold(engine, pictures[0], monkeypatch)
    preparing, go_on = threading.Event(), threading.Event()
    prepare = engine._prepare

    def slowly(*request: Any) -> Answer:
        preparing.set()
        assert go_on.wait(DEADLINE)
        return prepare(*request)

    monkeypatch.setattr(engine, "_prepare", slowly)

    async def leave() -> None:
        waiting = asyncio.create_task(engine.asubmit(engine.question("What?", 1), [pictures[1]], GREEDY))
        assert await asyncio.to_thread(preparing.wait, DEADLINE)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        go_on.set()

    asyncio.run(leave())
    engine._preparers.shutdown(wait=True)
    assert engine.waiting == 0
    gate.opened.set()
    assert "".join(first)
    assert gate.batches == [1]


def test_a_full_queue_refuses_before_any_picture_is_opened(
    new_engine: Callable[..., ChatEngine], pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine(max_waiting=1)
    gate, first = hold(engine, pictures[0], monkeypatch)
    second = submit(engine, pictures[0])

    def open_picture() -> Image.Image:
        raise AssertionError("opened")

    async def ask() -> None:
        await engine.asubmit(engine.question("What?", 1), [open_picture], GREEDY)

    with pytest.raises(Overloaded):
        asyncio.run(ask())
    gate.opened.set()
    assert "".join(first) == "".join(second)


def test_a_coroutine_cancelled_before_its_turn_to_prepare_gives_its_place_back(
    new_engine: Callable[..., ChatEngine], pictures: list[Image.Image]
) -> None:
    engine = new_engine(max_preparing=1)
    opening, go_on = threading.Event(), threading.Event()

    def open_slowly() -> Image.Image:
        opening.set()
        assert go_on.wait(DEADLINE)
        return pictures[0]

    async def leave() -> str:
        question = engine.question("What is in the picture?", 1)
        first = asyncio.create_task(engine.asubmit(question, [open_slowly], GREEDY))
        assert await asyncio.to_thread(opening.wait, DEADLINE)
        second = asyncio.create_task(engine.asubmit(question, pictures[:1], GREEDY))
        await asyncio.sleep(0)  # lets it take its place
        assert engine.waiting == 2
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert engine.waiting == 1
        go_on.set()
        return "".join([piece async for piece in await first])

    assert asyncio.run(leave()) == "a purple ring, a cyan triangle and a blue square"


def test_a_picture_that_cannot_be_opened_refuses_the_request_and_gives_its_place_back(
    new_engine: Callable[..., ChatEngine],
) -> None:
    engine = new_engine()

    def fail() -> Image.Image:
        raise ImageError("no picture")

    with pytest.raises(ImageError, match="no picture"):
        engine.submit(engine.question("What?", 1), [fail], GREEDY)
    assert engine.waiting == 0


def test_the_cpus_allocator_is_understood() -> None:
    words = (
        "[enforce fail at alloc_cpu.cpp:126] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
    )
    assert ran_out_of_memory(RuntimeError(words))
    assert ran_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not ran_out_of_memory(RuntimeError("no kernel"))
