"""Assigns the samples of a batch to rows: several short ones share a row of the language model's batch."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def assign_rows(lengths: Sequence[int], capacity: int) -> list[int]:
    """Assigns samples to few rows of similar length.

    Two ways are tried, and the one with fewer rows is taken: first fit decreasing, which takes at most 11/9 of the
    fewest possible rows and one more; and filling row after row in the given order, so that samples which come sorted
    by the rows of a plan never take more rows than the plan has. Samples are then spread more evenly over as many rows
    if this makes the longest row shorter, which saves padding.

    Args:
        lengths: tokens of each sample.
        capacity: most tokens of a row. A longer sample gets a row alone.

    Returns:
        The row of each sample, numbered from 0.

    Raises:
        ValueError: a capacity below 1, or a negative length.
    """
    if capacity < 1:
        raise ValueError(f"a row's capacity is {capacity}; it must be at least 1")
    if (shortest := min(lengths, default=0)) < 0:
        raise ValueError(f"a sample has {shortest} tokens; lengths must be at least 0")
    if not lengths:
        return []
    rows = min(_fit_decreasing(lengths, capacity), _fill_in_order(lengths, capacity), key=max)
    if max(lengths) > capacity:
        return rows
    level = _level(lengths, max(rows) + 1)
    return min(rows, level, key=lambda found: longest_row(lengths, found))


def longest_row(lengths: Sequence[int], rows: Sequence[int]) -> int:
    """Counts the tokens of the longest row."""
    totals = [0] * (max(rows) + 1)
    for length, row in zip(lengths, rows, strict=True):
        totals[row] += length
    return max(totals)


def _fit_decreasing(lengths: Sequence[int], capacity: int) -> list[int]:
    """Takes the longest samples first, each into the first row that has room."""
    rows, left = [0] * len(lengths), list[int]()  # left: tokens that each row has room for
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        row = next((row for row, room in enumerate(left) if length <= room), len(left))
        if row == len(left):
            left.append(capacity)
        left[row] -= length
        rows[index] = row
    return rows


def _fill_in_order(lengths: Sequence[int], capacity: int) -> list[int]:
    """Begins a new row wherever the next sample does not fit."""
    rows, row, room = [], -1, -1
    for length in lengths:
        if row < 0 or length > room:
            row, room = row + 1, capacity
        room -= length
        rows.append(row)
    return rows


def _level(lengths: Sequence[int], count: int) -> list[int]:
    """Takes the longest samples first, each into the shortest of `count` rows."""
    rows, totals = [0] * len(lengths), [(0, row) for row in range(count)]
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        total, row = totals[0]
        heapq.heapreplace(totals, (total + lengths[index], row))
        rows[index] = row
    return rows
