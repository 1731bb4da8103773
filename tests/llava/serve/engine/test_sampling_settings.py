"""Penalties and filters are transformers' own in vLLM's order; no setting raises, and no row hurts another."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llava.constants import IMAGE_TOKEN_INDEX
from llava.serve.engine import sampling as module
from llava.serve.engine.params import Sampling
from llava.serve.engine.sampling import RowSampler, sample
from llava.serve.openai.chat import sampling_of
from llava.serve.openai.requests import MAX_INT, ChatRequest
from llava.serve.workers.protocol import GenerateRequest

CPU = torch.device("cpu")
VOCABULARY = 40
LOGITS = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(0)) * 2
PROMPT = torch.tensor([3, 5, IMAGE_TOKEN_INDEX, 3, 39])


def theirs(row: Sampling, ids: Tensor) -> Tensor:
    """The scores (V,) that transformers samples from, its processors in vLLM's order."""
    steps: list[Any] = [RepetitionPenaltyLogitsProcessor(row.repetition_penalty or 1.0)]
    if not row.greedy:
        steps += [TemperatureLogitsWarper(row.temperature), MinPLogitsWarper(row.min_p)]
        steps += [TopKLogitsWarper(row.top_k)] if row.top_k > 0 else []
        steps += [TopPLogitsWarper(row.top_p or 1.0)]
    return LogitsProcessorList(steps)(ids[None], LOGITS[None].clone())[0]


ROWS = [
    Sampling(0.7, top_k=3),
    Sampling(0.7, top_k=1),
    Sampling(1.0, top_k=0),
    Sampling(1.0, top_k=-1, top_p=0.8),
    Sampling(1.5, top_k=10**30),
    Sampling(1.3, min_p=0.2),
    Sampling(1.3, min_p=1.0),
    Sampling(2.0, 0.7, top_k=12, min_p=0.05),
    Sampling(0.8, 0.9, top_k=8, min_p=0.01, repetition_penalty=1.7),
    Sampling(1.0, repetition_penalty=0.6),
    Sampling(0, repetition_penalty=4.0),
]


@pytest.mark.parametrize("row", [row for row in ROWS if not row.greedy])
def test_tokens_come_in_the_proportions_of_transformers_own_processors(
    row: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of many rows of one batch takes the next of evenly spaced draws."""
    count, answer = 1500, torch.tensor([7, 7, 11])
    sampler = RowSampler([row] * count, CPU, [PROMPT] * count)
    monkeypatch.setattr(sampler, "_draw", lambda i: torch.tensor([(i + 0.5) / count]))
    scores = sampler(answer.expand(count, -1), LOGITS.expand(count, -1))
    shares = torch.bincount(scores.argmax(-1), minlength=VOCABULARY) / count
    expected = theirs(row, torch.cat([PROMPT[PROMPT >= 0], answer])).softmax(-1)
    torch.testing.assert_close(shares, expected, atol=2 / count, rtol=0)


def test_rows_of_one_batch_keep_to_their_own_settings() -> None:
    rows = [Sampling(**{**vars(row), "seed": 3}) for row in ROWS]
    prompts = [PROMPT if i % 2 else PROMPT[:1] for i in range(len(rows))]
    answers = torch.arange(2 * len(rows)).reshape(-1, 2)
    together = RowSampler(rows, CPU, prompts)(answers, LOGITS.expand(len(rows), -1))
    for i, row in enumerate(rows):
        alone = RowSampler([row], CPU, prompts[i : i + 1])(answers[i : i + 1], LOGITS[None])
        torch.testing.assert_close(together[i], alone[0], atol=0, rtol=0)


def test_greedy_rows_are_penalized_for_text_tokens_of_prompt_and_answer() -> None:
    row, answer = Sampling(0, repetition_penalty=3.0), torch.tensor([7])
    (found,) = RowSampler([row], CPU, [PROMPT])(answer[None], LOGITS[None])
    torch.testing.assert_close(found, theirs(row, torch.tensor([3, 5, 39, 7])))
    changed = (found != LOGITS).nonzero()[:, 0]
    assert changed.tolist() == [3, 5, 7, 39]


def test_a_high_temperature_leaves_top_k_its_tokens() -> None:
    one = torch.ones(1)
    drawn = {sample(LOGITS[None], 1e308 * one.double(), one, d * one, torch.tensor([2])).item() for d in (0, 0.6, 0.9)}
    assert drawn == set(LOGITS.topk(2).indices.tolist())


# Extremes

EXTREMES = [5e-324, 1e-46, 1e-45, 1e-38, 1e-9, 0.5, 1 - 2**-53, 1.0]
LARGE = [*EXTREMES, 2.0, 3e38, 1e39, 1e308, 10**300]
SETTINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0, *LARGE]) | st.floats(0, allow_infinity=False, allow_nan=False),
    top_p=st.sampled_from([None, *EXTREMES]) | st.floats(0, 1, exclude_min=True),
    top_k=st.sampled_from([-1, 0, 1, 4, 5, 2**31, 2**63, 10**40]),
    min_p=st.sampled_from([0, *EXTREMES]) | st.floats(0, 1),
    repetition_penalty=st.sampled_from(LARGE) | st.floats(0, exclude_min=True, allow_infinity=False, allow_nan=False),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
)
NUMBERS = st.sampled_from([0.0, 1e-40, -3.4e38, 3.4e38, math.inf, -math.inf, math.nan]) | st.floats(-20, 20, width=32)


@settings(max_examples=40)
@given(st.lists(st.tuples(SETTINGS, st.lists(NUMBERS, min_size=5, max_size=5)), min_size=1, max_size=4), st.data())
def test_no_setting_and_no_logits_raise(rows: list[tuple[Sampling, list[float]]], data: st.DataObject) -> None:
    scores = torch.tensor([logits for _, logits in rows])
    ids = st.lists(st.sampled_from([IMAGE_TOKEN_INDEX, *range(9)]), min_size=1, max_size=4)
    prompts = [torch.tensor(data.draw(ids)) for _ in rows]
    failed: dict[int, Exception] = {}
    sampler = RowSampler([row for row, _ in rows], CPU, prompts, failed.__setitem__)
    for tokens in ([], [[4]] * len(rows)):
        answers = torch.tensor(tokens, dtype=torch.long).reshape(len(rows), -1)
        found = sampler(answers, scores).argmax(-1)
        for i, (_, logits) in enumerate(rows):
            broken = any(map(math.isnan, logits)) or not math.isfinite(max(logits))
            assert (i in failed) == broken
            assert broken or logits[found[i]] > -math.inf
    assert all(isinstance(error, ArithmeticError) for error in failed.values())


VALUES = st.one_of(
    st.sampled_from([*LARGE, 0, -1, -1.0, math.nan, math.inf, 2**31, 10**400, None, True]),
    st.floats(),
    st.integers(),
)
FIELDS = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(("temperature", "top_p", "seed", "top_k", "min_p", "repetition_penalty"), VALUES),
)


@settings(max_examples=60)
@given(FIELDS)
def test_what_a_request_may_ask_for_can_be_sampled(fields: dict[str, Any]) -> None:
    """Both protocols; a value that they refuse is refused as a ValueError."""
    chat = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    asks = (
        lambda: sampling_of(ChatRequest(**chat, **fields))[0],
        lambda: GenerateRequest(prompt="", **fields).sampling(),
    )
    for ask in asks:
        try:
            row = ask()
        except ValueError:
            continue
        for size in (1, 7):
            RowSampler([row], CPU, [PROMPT])(torch.zeros(1, 1, dtype=torch.long), LOGITS[None, :size])


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("temperature", 10**400),
        ("top_k", -2),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("min_p", math.nan),
        ("repetition_penalty", 0),
        ("repetition_penalty", math.inf),
        ("repetition_penalty", math.nan),
        ("logprobs", -1),
        ("logprobs", 21),
    ],
)
def test_impossible_settings_are_refused_with_their_range(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{setting} must be .*, got {value}"):
        Sampling(**{setting: value})


@pytest.mark.parametrize(
    ("setting", "value", "allowed"),
    [
        ("stop", "###", "a tuple of strings"),  # else each of its characters would end the answer
        ("stop", (1,), "a tuple of strings"),
        ("temperature", "0.2", "a number"),
        ("temperature", None, "a number"),
        ("top_p", True, "a number"),
        ("max_new_tokens", 64.0, "an integer"),
        ("num_beams", "2", "an integer"),
        ("seed", 1.5, "an integer"),
        ("top_k", 1.5, "an integer"),
    ],
)
def test_settings_of_another_type_are_refused(setting: str, value: Any, allowed: str) -> None:
    with pytest.raises(TypeError, match=re.escape(f"{setting} is {value!r}; it must be {allowed}")):
        Sampling(**{setting: value})


def test_a_list_of_stop_strings_is_taken() -> None:
    assert Sampling(stop=["###", "\n"]).stop == ("###", "\n")


def test_numpys_numbers_are_numbers() -> None:
    row = Sampling(np.float32(0.5), np.float64(0.9), max_new_tokens=np.int64(7), seed=np.int64(3))
    assert (row.temperature, row.max_new_tokens, row.seed) == (0.5, 7, 3)


@pytest.mark.parametrize("setting", [{"repetition_penalty": 1.1}, {"logprobs": 0}])
def test_beams_take_neither_penalties_nor_logprobs(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="num_beams must be 1 with a repetition_penalty or logprobs, got 2"):
        Sampling(num_beams=2, **setting)


def test_a_request_of_llavas_protocol_takes_the_same_settings() -> None:
    asked = GenerateRequest(prompt="", top_k=MAX_INT, min_p=0.1, repetition_penalty=1.2).sampling()
    assert (asked.top_k, asked.min_p, asked.repetition_penalty) == (MAX_INT, 0.1, 1.2)
    plain = GenerateRequest(prompt="", top_k=None, min_p=None, repetition_penalty=None).sampling()
    assert (plain.top_k, plain.min_p, plain.repetition_penalty) == (-1, 0, None)


# Rows that fail


def drawn(rows: list[Sampling], errors: dict[int, Exception], steps: int = 6) -> list[list[int]]:
    sampler = RowSampler(rows, CPU, [PROMPT] * len(rows), errors.__setitem__)
    answers = torch.zeros(len(rows), 1, dtype=torch.long)
    return torch.stack([sampler(answers, LOGITS.expand(len(rows), -1)).argmax(-1) for _ in range(steps)], 1).tolist()


@pytest.mark.parametrize("part", ["sample", "penalize"])
def test_a_row_whose_sampling_raises_leaves_its_neighbours_their_tokens(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [Sampling(1.5 + i / 10, seed=i, repetition_penalty=1.1 + i / 10) for i in range(4)]
    expected = drawn(rows, {})
    work, place, culprit = getattr(module, part), *{"sample": (1, 1.7), "penalize": (2, 1.3)}[part]

    def fail_for_one(*args: Any) -> Tensor:
        if args[place].isclose(torch.tensor(culprit)).any():
            raise RuntimeError("this row")
        return work(*args)

    monkeypatch.setattr(module, part, fail_for_one)
    errors: dict[int, Exception] = {}
    found = drawn(rows, errors)
    assert {row: str(error) for row, error in errors.items()} == {2: "this row"}
    assert [found[i] for i in (0, 1, 3)] == [expected[i] for i in (0, 1, 3)]


def test_a_row_whose_generator_fails_leaves_its_neighbours_their_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Sampling(1.5, seed=i) for i in range(3)]
    expected = drawn(rows, {})
    draw = RowSampler._draw

    def fail_for_one(self: RowSampler, row: int) -> Tensor:
        if row == 1:
            raise RuntimeError("no entropy")
        return draw(self, row)

    monkeypatch.setattr(RowSampler, "_draw", fail_for_one)
    errors: dict[int, Exception] = {}
    found = drawn(rows, errors)
    assert list(errors) == [1]
    assert (found[0], found[2]) == (expected[0], expected[2])


def test_a_checkpoints_own_penalty_holds_for_rows_that_name_none():
    logits = torch.tensor([[2.0, 1.9], [2.0, 1.9], [2.0, 1.9]])
    rows = [Sampling(0), Sampling(0, repetition_penalty=1.0), Sampling(0, repetition_penalty=4.0)]
    sampler = RowSampler(rows, torch.device("cpu"), [torch.tensor([0])] * 3, penalty=2.0)
    assert sampler(None, logits).tolist() == [pytest.approx(row) for row in ([1.0, 1.9], [2.0, 1.9], [0.5, 1.9])]
