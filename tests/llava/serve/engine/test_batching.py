"""Each answer of a batch equals the answer that its request gets alone."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import pytest
import torch
from PIL import Image

from llava.model.builder import load_pretrained_model
from llava.serve.engine import ChatEngine
from llava.serve.engine.answer_stream import AnswerStream
from llava.serve.engine.params import EngineLimits, QLIPOptions, Sampling
from llava.utils import demo_model_path
from tests.llava.serve.engine.engines import Hold, NewEngine, submit
from tests.llava.serve.openai.serving import loaded

REQUESTS: list[dict[str, Any]] = [
    {},
    {"question": "How many shapes are there?"},
    {"sampling": Sampling(temperature=0, max_new_tokens=3)},
    {"sampling": Sampling(temperature=0, stop=(" and", "triangle"))},
    {"sampling": Sampling(temperature=1.2, top_p=0.9, seed=5, max_new_tokens=16)},
    {"sampling": Sampling(temperature=1.2, seed=6, max_new_tokens=10)},
    {"qlip": QLIPOptions(enabled=False)},
    {"qlip": QLIPOptions(max_tokens=70)},
    {"qlip": QLIPOptions(alpha=0.3, image_size=112)},
]

Outcome = tuple[str, str | None, int]


def outcomes(answers: list[AnswerStream]) -> list[Outcome]:
    """The texts, why they ended, and their numbers of tokens."""
    return [("".join(answer), answer.finish_reason, answer.usage.generated_tokens) for answer in answers]


@pytest.fixture(scope="module")
def alone(pictures: list[Image.Image]) -> list[Outcome]:
    """What transformers' `generate` answers to each request."""
    engine = ChatEngine(*loaded(), limits=EngineLimits(max_batch=1), joins=False)
    found = outcomes([submit(engine, picture, **request) for picture, request in zip(cycle(pictures), REQUESTS)])
    engine.close()
    return found


@pytest.mark.parametrize(
    ("limits", "groups"),
    [
        ({"joins": False}, [1, len(REQUESTS)]),
        ({"max_join_tokens": 10_000}, [1, len(REQUESTS)]),
        ({"max_join_tokens": 40}, [1] * (1 + len(REQUESTS))),  # their prompts in pieces
    ],
    ids=["to its end", "joining together", "joining one by one"],
)
def test_each_answer_of_a_batch_equals_the_answer_alone(
    new_engine: NewEngine,
    hold: Hold,
    pictures: list[Image.Image],
    alone: list[Outcome],
    limits: dict[str, int],
    groups: list[int],
) -> None:
    engine = new_engine(max_batch=1 + len(REQUESTS), max_batch_tokens=100_000, **limits)
    gate, first = hold(engine)
    together = [submit(engine, picture, **request) for picture, request in zip(cycle(pictures), REQUESTS)]
    gate.opened.set()
    assert outcomes(together) == alone
    assert gate.batches == groups
    assert "".join(first) == alone[0][0]


def test_one_model_serves_both_clips_grid_and_the_quadtree(new_engine: NewEngine, pictures: list[Image.Image]) -> None:
    """The oracle for CLIP's grid is the CLIP tower itself."""
    clip = ChatEngine(*load_pretrained_model(demo_model_path(), device="cpu", qlip=False))
    engine = new_engine()
    for picture in pictures[:2]:
        answer = submit(engine, picture, qlip=QLIPOptions(enabled=False))
        oracle = submit(clip, picture)
        assert "".join(answer) == "".join(oracle)
        assert answer.usage.visual_tokens == oracle.usage.visual_tokens == 64
        (ours,), (theirs,) = engine.vision.encode(answer.views), clip.vision.encode(oracle.views)
        torch.testing.assert_close(ours.features, theirs.features, atol=1e-4, rtol=1e-4)
    assert "".join(submit(engine, pictures[0])) != "".join(submit(clip, pictures[0]))
    clip.close()


def test_an_answer_that_ends_early_is_complete_before_its_batch(
    new_engine: NewEngine, hold: Hold, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine()
    gate, _ = hold(engine)
    short = submit(engine, pictures[0], sampling=Sampling(temperature=0, max_new_tokens=1))
    long = submit(engine, pictures[0])
    take = long.row.take

    def take_after_the_short_one(token: int, logprobs: None) -> None:
        if long.row.generated == 1:
            assert list(short) != []  # ends now, or this waits forever
        take(token, logprobs)

    monkeypatch.setattr(long.row, "take", take_after_the_short_one)
    gate.opened.set()
    assert "".join(long).startswith("a purple ring")
    assert gate.batches == [1, 2]


def test_the_usage_counts_tokens_and_seconds(new_engine: NewEngine, pictures: list[Image.Image]) -> None:
    engine = new_engine()
    answer = submit(engine, pictures[0])
    text = "".join(answer)
    usage, (view,) = answer.usage, answer.views
    assert usage.generated_tokens == len(engine.tokenizer(text, add_special_tokens=False).input_ids) + 1
    assert usage.visual_tokens == view.tokens == len(view.leaves)
    assert usage.uniform_tokens == (448 // 14) ** 2
    assert usage.prompt_tokens == usage.text_tokens + usage.visual_tokens
    assert min(usage.queue_seconds, usage.image_seconds, usage.prefill_seconds, usage.seconds_per_token) > 0
