"""Keys and values of a batch stay within `max_batch_tokens`, however long single requests and their answers are."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from llava.serve.engine import ChatEngine, continuous, scheduler
from llava.serve.engine.params import Sampling
from llava.serve.engine.slots import SlotCache
from tests.llava.serve.engine.engines import Hold, NewEngine, submit
from tests.llava.serve.openai.serving import loaded

BYTES = 4 * 2 * 160 * 4
"""Bytes of a token's keys and values in the embedded model: four layers of width 160 in float32."""

GREEDY = Sampling(temperature=0, max_new_tokens=16)


def count_bytes(*caches: SlotCache) -> int:
    layers = [layer for cache in {id(cache): cache for cache in caches}.values() for layer in cache.layers]
    return sum(slots.nbytes for layer in layers for slots in (layer.keys, layer.values) if slots is not None)


@pytest.fixture(scope="module")
def expected(pictures: list[Image.Image]) -> list[str]:
    """The answers to questions about all pictures, one after another."""
    engine = ChatEngine(*loaded())
    answers = ["".join(submit(engine, picture, sampling=GREEDY)) for picture in pictures]
    engine.close()
    return answers


@pytest.mark.parametrize(("words", "growth", "limit"), [(30, 64, 880), (400, 64, 880), (30, 0, 510)])
def test_one_long_request_among_short_ones(
    new_engine: NewEngine,
    hold: Hold,
    pictures: list[Image.Image],
    monkeypatch: pytest.MonkeyPatch,
    expected: list[str],
    words: int,
    growth: int,
    limit: int,
) -> None:
    """Padded, each short one takes as much as the long one; without room to grow, some wait during their answers."""
    for module in (continuous, scheduler):
        monkeypatch.setattr(module, "GROWTH", growth)
    engine = new_engine(max_batch_tokens=limit, max_prefix_mib=0)
    suspended, suspend = list[int](), engine._batch._suspend
    monkeypatch.setattr(engine._batch, "_suspend", lambda most: (suspended.append(most), suspend(most)))
    gate, first = hold(engine)
    held, forward = list[tuple[int, int]](), engine.model.forward

    def forward_and_count(*args: Any, **inputs: Any) -> Any:
        result, running = forward(*args, **inputs), engine._batch._running
        held.append((len(running.streams), count_bytes(running.cache, inputs["past_key_values"])))
        return result

    monkeypatch.setattr(engine.model, "forward", forward_and_count)
    answers = [submit(engine, picture, sampling=GREEDY) for picture in pictures[:2]]
    long = engine.submit(engine.question("quartz " * words, 1), pictures[:1], GREEDY)
    answers += [submit(engine, picture, sampling=GREEDY) for picture in pictures[2:]]
    gate.opened.set()
    assert ["".join(answer) for answer in answers] == expected
    assert "".join(first) == expected[0] and "".join(long) is not None
    assert bool(suspended) == (growth == 0)
    assert (long.usage.prompt_tokens > limit) == (words == 400)
    together = [size for rows, size in held if rows > 1]
    assert max(rows for rows, _ in held) > 2
    assert 0.5 * limit * BYTES < max(together) <= limit * BYTES
