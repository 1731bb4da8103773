"""Each row of a batch draws from its own nucleus, as transformers' own processors define it, and by its own seed."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from llava.serve.engine.params import Sampling
from llava.serve.engine.sampling import RowSampler, penalize, sample

LOGITS = torch.tensor([2.0, -1.0, 0.5, 3.0, -4.0, 0.4])


def theirs(temperature: float, top_p: float) -> torch.Tensor:
    """The probabilities that transformers samples from."""
    scores = TemperatureLogitsWarper(temperature)(None, LOGITS[None])
    return TopPLogitsWarper(top_p)(None, scores).softmax(-1)[0]


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 0.9), (2.0, 0.6), (1.0, 0.01)])
def test_evenly_spaced_draws_give_tokens_in_proportion_to_their_probability(temperature: float, top_p: float) -> None:
    count = 20_000
    draws = (torch.arange(count) + 0.5) / count
    row = torch.ones(count)
    tokens = sample(LOGITS.expand(count, -1), temperature * row, top_p * row, draws)
    shares = torch.bincount(tokens, minlength=len(LOGITS)) / count
    torch.testing.assert_close(shares, theirs(temperature, top_p), atol=2 / count, rtol=0)


@pytest.mark.parametrize("draw", [0.0, 1 - 2**-24])
def test_no_draw_leaves_the_nucleus(draw: float) -> None:
    logits = torch.randn(50, 600, generator=torch.Generator().manual_seed(0)) * 5
    ones = torch.ones(50)
    tokens = sample(logits, ones, 0.7 * ones, draw * ones)
    kept = TopPLogitsWarper(0.7)(None, logits).isfinite()
    assert kept.gather(1, tokens[:, None]).all()


@pytest.mark.parametrize("temperature", [1e-6, 1e-45])
def test_a_temperature_near_0_is_greedy(temperature: float) -> None:
    one = torch.ones(1)
    assert sample(LOGITS[None], temperature * one, one, 0.999 * one).item() == 3


def drawn(rows: list[Sampling], steps: int = 20) -> list[list[int]]:
    """The tokens that each row draws from the same logits, step by step."""
    sampler = RowSampler(rows, torch.device("cpu"))
    scores = [sampler(None, LOGITS.expand(len(rows), -1)) for _ in range(steps)]
    return torch.stack([step.argmax(-1) for step in scores], dim=1).tolist()


def test_a_seed_draws_the_same_in_any_company() -> None:
    mine = Sampling(temperature=1.5, seed=7)
    (alone,) = drawn([mine])
    assert drawn([Sampling(0), Sampling(2.0, seed=8), mine, Sampling(1.0, 0.5)])[2] == alone
    assert drawn([Sampling(temperature=1.5, seed=8)]) != [alone]
    assert len(set(alone)) > 2


def test_without_a_seed_each_answer_is_another() -> None:
    assert len({tuple(row) for row in drawn([Sampling(temperature=2.0)] * 4)}) > 1


def test_greedy_rows_keep_their_scores() -> None:
    scores = torch.stack([LOGITS, LOGITS])
    torch.testing.assert_close(RowSampler([Sampling(0), Sampling(1.0)], scores.device)(None, scores)[0], LOGITS)
    assert RowSampler([Sampling(0)] * 2, scores.device)(None, scores) is scores


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("temperature", -1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0),
        ("top_p", 1.5),
        ("num_beams", 0),
        ("max_new_tokens", 0),
        ("seed", 2**63),
    ],
)
def test_impossible_settings_are_refused(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{setting} must be .*, got {value}"):
        Sampling(**{setting: value})


class NoFloat64(TorchDispatchMode):
    """A device without 64-bit floats, as Apple's GPUs are."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple) else (result,):
            assert not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.float64, function
        return result


def test_tokens_are_drawn_without_64_bit_floats() -> None:
    logits, one = torch.randn(2, 9), torch.ones(2)
    with NoFloat64():
        tokens = sample(logits, 0.2 * one, 0.9 * one, 0.5 * one, torch.tensor([3, 9]), 0.1 * one)
        penalized = penalize(logits, torch.ones(2, 9, dtype=torch.bool), 1.5 * one)
    assert tokens.shape == (2,) and penalized.dtype == torch.float32
