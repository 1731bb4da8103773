"""assign_rows: no row too full, few rows, and never more than a plan that the samples are sorted by."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.train.data.packing import assign_rows

LENGTHS = st.lists(st.integers(0, 30), max_size=30)
CAPACITY = st.integers(1, 40)


def filled(lengths: list[int], rows: list[int]) -> Counter[int]:
    totals: Counter[int] = Counter()
    for length, row in zip(lengths, rows, strict=True):
        totals[row] += length
    return totals


def fewest_rows(lengths: list[int], capacity: int) -> int:
    """Tries every assignment."""
    most = len(lengths)
    assignments = product(range(most), repeat=most)
    fitting = (rows for rows in assignments if max(filled(lengths, list(rows)).values()) <= capacity)
    return min(len(set(rows)) for rows in fitting)


@given(lengths=LENGTHS, capacity=CAPACITY)
def test_a_row_is_within_its_capacity_or_holds_one_long_sample(lengths, capacity):
    rows = assign_rows(lengths, capacity)
    assert set(rows) == set(range(len(set(rows))))
    for row, total in filled(lengths, rows).items():
        members = [length for length, own in zip(lengths, rows, strict=True) if own == row and length]
        assert total <= capacity or len(members) == 1


@given(lengths=LENGTHS, capacity=CAPACITY)
def test_the_same_lengths_have_the_same_rows(lengths, capacity):
    assert assign_rows(lengths, capacity) == assign_rows(lengths, capacity)


@settings(max_examples=50)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5), order=st.randoms(use_true_random=False))
def test_rows_are_few_in_any_order(lengths, order):
    """The bound of first fit decreasing (Dósa 2007): 11/9 of the optimum, and 6/9."""
    fewest = fewest_rows(lengths, 12)
    order.shuffle(lengths)
    assert len(set(assign_rows(lengths, 12))) <= 11 / 9 * fewest + 6 / 9


@settings(max_examples=50)
@given(plan=st.lists(st.lists(st.integers(1, 10), min_size=1, max_size=6).filter(lambda row: sum(row) <= 20)))
def test_samples_sorted_by_the_rows_of_a_plan_take_no_more_rows(plan):
    lengths = [length for row in plan for length in row]
    assert len(set(assign_rows(lengths, 20))) <= len(plan)


def test_known_rows():
    assert assign_rows([3, 8, 5, 2], 10) == [1, 0, 1, 0]
    assert assign_rows([], 10) == []
    assert assign_rows([50, 4, 6], 10) == [0, 1, 1]
    # First fit decreasing takes three rows: 4 + 3, 3 + 2 + 2, 2.
    assert assign_rows([4, 2, 2, 3, 3, 2], 8) == [0, 0, 0, 1, 1, 1]


def test_rows_are_levelled():
    """First fit decreasing would fill a row of 90 and leave one of 30: 180 tokens with padding, not 120."""
    assert filled([50, 40, 20, 10], assign_rows([50, 40, 20, 10], 90)) == {0: 60, 1: 60}


def test_what_is_no_length_or_capacity_is_an_error():
    with pytest.raises(ValueError, match="capacity is 0; it must be at least 1"):
        assign_rows([1], 0)
    with pytest.raises(ValueError, match="-2 tokens"):
        assign_rows([3, -2], 10)
