"""A run continues only a run whose steps took the samples that its own would take."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llava.train.data.token_batches import TokenBatchSampler
from llava.train.plan import check_resumed_plan, plan_steps

WORDS = [12, -7, 30, 12, -90, 41, 8, -15]
LENGTHS = np.array([100, 40, 230, 90, 400, 150, 60, 80])
COUNTED = {
    "train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "world_size": 2,
    "pack": False,
    "batch_tokens": None,
    "model_max_length": 512,
    "group_by_modality_length": False,
    "train_sampling_strategy": "random",
}
PACKED = {**COUNTED, "pack": True, "batch_tokens": 400}


class Data(list[int]):
    @property
    def modality_lengths(self) -> list[int]:
        return list(self)


def plan(flags: dict[str, Any], words: list[int] = WORDS, seed: int = 42, lengths: Any = LENGTHS) -> dict[str, Any]:
    return plan_steps(Data(words), SimpleNamespace(**flags), seed, lengths)


def resume(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    (folder / "throughput.json").write_text(json.dumps({"plan": before}))
    check_resumed_plan(folder, now)


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (plan(COUNTED, WORDS[:6]), "samples in the data: 8, and this run has 6"),
        (plan(COUNTED, [13, *WORDS[1:]]), r"data \(a digest of its samples' lengths in words\): \w{16}, and"),
        (plan({**COUNTED, "train_batch_size": 4}), r"samples a step \(.*\): 8, and this run has 16"),
        (plan({**COUNTED, "world_size": 8}), r"samples a step \(.*\): 8, and this run has 32"),
        (plan({**COUNTED, "train_sampling_strategy": "sequential"}), "order of samples: random, and .* sequential"),
        (plan({**COUNTED, "group_by_modality_length": True}), "order of samples: random, and .* --group_by_modality_l"),
        (plan({**COUNTED, "batch_tokens": 400}), r"samples a step \(.*\): 8, and this run has None"),
        (plan(COUNTED, seed=7), "--data_seed or --seed: 42, and this run has 7"),
    ],
)
def test_by_count_another_set_order_or_number_is_refused(tmp_path: Path, now: dict[str, Any], told: str) -> None:
    with pytest.raises(
        ValueError, match=f"{tmp_path} was trained with {told}.* give the same, or another --output_dir"
    ):
        resume(tmp_path, plan(COUNTED), now)


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (plan({**PACKED, "batch_tokens": 800, "world_size": 1}), "tokens a batch .*: 400, and this run has 800"),
        (plan({**PACKED, "model_max_length": 400}), "tokens a packed row .*: 512, and this run has 400"),
        (plan(PACKED, lengths=LENGTHS + 1), r"tokens of the samples \(a digest\): \w{16}, and this run has \w{16}"),
        (plan({**PACKED, "pack": False}), "--pack: True, and this run has False"),
    ],
)
def test_by_tokens_other_batches_or_lengths_are_refused(tmp_path: Path, now: dict[str, Any], told: str) -> None:
    """As much a step is not enough: batches are formed from all lengths and the bound of one."""
    with pytest.raises(ValueError, match=f"was trained with {told}"):
        resume(tmp_path, plan(PACKED), now)


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (plan(COUNTED), plan({**COUNTED, "train_batch_size": 1, "gradient_accumulation_steps": 4})),
        (plan(COUNTED), plan({**COUNTED, "world_size": 1, "gradient_accumulation_steps": 4})),
        (plan(COUNTED), plan(COUNTED, lengths=None)),
        (plan(PACKED), plan({**PACKED, "world_size": 4, "gradient_accumulation_steps": 1})),
        ({"--pack": False}, plan(COUNTED)),  # of before the rest was written down
    ],
)
def test_what_takes_the_same_samples_continues(tmp_path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    resume(tmp_path, before, now)


def test_a_packed_row_or_bound_alone_gives_other_steps() -> None:
    """Why the tokens of a step do not decide; the same bound by other processes does."""

    many = np.random.default_rng(0).integers(20, 300, 60)

    def steps(bound: int, capacity: int, world: int, accumulation: int) -> list[set[int]]:
        samplers = [TokenBatchSampler(many, bound, capacity, world, rank, accumulation) for rank in range(world)]
        batches = [list(sampler) for sampler in samplers]
        return [
            {index for own in batches for batch in own[start : start + accumulation] for index in batch}
            for start in range(0, len(batches[0]), accumulation)
        ]

    assert steps(400, 400, 2, 1) == steps(400, 400, 1, 2)
    assert steps(400, 400, 2, 1) != steps(800, 400, 1, 1)
    assert steps(800, 400, 1, 1) != steps(800, 800, 1, 1)
