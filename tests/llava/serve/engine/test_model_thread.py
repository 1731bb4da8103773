"""The thread that runs the model outlives whatever is raised in it, and stops where nobody waits for the answer."""

from __future__ import annotations

import threading
from functools import wraps
from typing import Any

import pytest
import torch
from PIL import Image

from llava.serve.engine import halving
from llava.serve.engine.errors import GenerationError
from llava.serve.engine.params import Sampling
from tests.llava.serve.engine.engines import FIRST_ANSWER, NewEngine, submit
from tests.llava.serve.openai.serving import DEADLINE, becomes_idle


class Panic(BaseException):
    """As of a library in Rust."""


def fail_once(monkeypatch: pytest.MonkeyPatch, engine: Any, failure: BaseException) -> None:
    generate = engine.scheduler.generate

    def fail(batch: Any) -> None:
        monkeypatch.setattr(engine.scheduler, "generate", generate)
        raise failure

    monkeypatch.setattr(engine.scheduler, "generate", fail)


@pytest.mark.parametrize("failure", [SystemExit("of a library"), Panic("of another")], ids=repr)
def test_what_is_no_exception_fails_the_running_answers_only(
    new_engine: NewEngine, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    engine = new_engine()
    fail_once(monkeypatch, engine, failure)
    with pytest.raises(GenerationError):
        "".join(submit(engine, pictures[0]))
    assert "".join(submit(engine, pictures[0])) == FIRST_ANSWER
    assert becomes_idle(engine)


def test_so_does_a_failure_to_make_room(
    new_engine: NewEngine, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a GPU has failed, freeing its memory fails as well."""
    engine = new_engine(joins=False)

    def fail(batch: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(halving, "free_and_halve", fail)
    generate, gate = engine.scheduler.generate, threading.Event()

    def run_out(batch: Any) -> None:
        assert gate.wait(DEADLINE)
        if len(batch) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        generate(batch)

    monkeypatch.setattr(engine.scheduler, "generate", run_out)
    first = submit(engine, pictures[0])
    together = [submit(engine, picture) for picture in (pictures[0], pictures[0])]
    gate.set()
    assert "".join(first) == FIRST_ANSWER
    for answer in together:
        with pytest.raises(GenerationError):
            "".join(answer)
    assert "".join(submit(engine, pictures[0])) == FIRST_ANSWER


def test_a_beam_search_ends_at_the_next_token_once_it_is_cancelled(
    new_engine: NewEngine, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine()
    beams, forward, steps = Sampling(temperature=0, num_beams=3), engine.model.forward, []
    waiting, known = [], threading.Event()

    @wraps(forward)  # `generate` reads its parameters
    def count(*args: Any, **options: Any) -> Any:
        assert known.wait(DEADLINE)
        steps.append(1)
        if len(steps) == 2 and waiting:
            waiting.pop().cancel()
        return forward(*args, **options)

    monkeypatch.setattr(engine.model, "forward", count)
    known.set()
    "".join(submit(engine, pictures[0], sampling=beams))
    whole = len(steps)
    steps.clear()
    known.clear()
    answer = submit(engine, pictures[0], sampling=beams)
    waiting.append(answer)
    known.set()
    "".join(answer)
    assert answer.finish_reason == "cancelled"
    assert len(steps) == 2 < whole - 2
