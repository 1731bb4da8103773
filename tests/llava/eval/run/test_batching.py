"""Batches keep their limits, lose no prompt, and end only where the next one does not fit."""

from __future__ import annotations

from itertools import groupby, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava.eval.run.batching import BatchLimits, form_batches

LENGTHS = st.lists(st.integers(1, 2000), max_size=40)
LIMITS = st.builds(
    BatchLimits, rows=st.integers(1, 12), tokens=st.integers(1, 9000), waste=st.floats(0.01, 1.0, exclude_min=True)
)


def fits(lengths: list[int], limits: BatchLimits) -> bool:
    """The promise, written down once more: of a batch with these lengths."""
    area = len(lengths) * max(lengths)
    small = len(lengths) <= limits.rows and area <= limits.tokens
    return len(lengths) == 1 or (small and 1 - sum(lengths) / area < limits.waste)


@given(LENGTHS, LIMITS)
def test_every_prompt_is_in_one_batch_and_every_batch_keeps_the_limits(lengths: list[int], limits: BatchLimits) -> None:
    batches = form_batches(lengths, limits)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(fits([lengths[index] for index in batch], limits) for batch in batches)


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=300))
def test_padding_wastes_less_than_a_tenth_of_all_tokens(lengths: list[int]) -> None:
    batches = form_batches(lengths, BatchLimits())
    padded = sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)
    assert 1 - sum(lengths) / padded < 0.1


@given(LENGTHS, LIMITS)
def test_a_batch_ends_only_where_the_next_prompt_would_not_fit(lengths: list[int], limits: BatchLimits) -> None:
    batches = [[lengths[index] for index in batch] for batch in form_batches(lengths, limits)]
    assert not any(fits([*batch, following[0]], limits) for batch, following in pairwise(batches))


@given(LENGTHS, LIMITS)
def test_the_longest_prompts_come_first_and_equal_ones_in_their_order(lengths: list[int], limits: BatchLimits) -> None:
    order = [index for batch in form_batches(lengths, limits) for index in batch]
    assert order == sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))


@given(st.lists(st.tuples(st.integers(1, 2000), st.integers(0, 5)), max_size=40), LIMITS)
def test_prompts_of_a_group_follow_each_other_within_the_same_limits(
    prompts: list[tuple[int, int]], limits: BatchLimits
) -> None:
    lengths, groups = [length for length, _ in prompts], [group for _, group in prompts]
    batches = form_batches(lengths, limits, groups)
    order = [index for batch in batches for index in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert len([group for group, _ in groupby(groups[index] for index in order)]) == len(set(groups))
    assert all(fits([lengths[index] for index in batch], limits) for batch in batches)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("rows", 0, "rows is 0; it must be at least 1"),
        ("tokens", -1, "tokens is -1; it must be at least 1"),
        ("waste", 0.0, "waste is 0.0; it must be above 0"),
        ("waste", 1.5, "waste is 1.5"),
    ],
)
def test_limits_that_no_batch_can_keep_are_refused(field: str, value: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        BatchLimits(**{field: value})
