"""Properties of `qlip.partition` on any image, with any options."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlip
from tests.qlip.reference import root_size
from tests.qlip.samples import CRITERIA, LAYOUTS, as_tuples, paper_partition, patchwork


@st.composite
def cases(draw) -> tuple[torch.Tensor, dict]:
    grid = (draw(st.integers(1, 40)), draw(st.integers(1, 40)))
    options = {"criterion": draw(st.sampled_from(CRITERIA)), "layout": draw(st.sampled_from(LAYOUTS))}
    options["split_order"] = draw(st.sampled_from(["side", "score"]))
    options["max_leaf"] = draw(st.sampled_from([None, 1, 2, 8]))
    return patchwork(grid, 2, seed=draw(st.integers(0, 99)), channels=2), options


thresholds = st.one_of(st.just(0.0), st.floats(0.01, 100), st.just(math.inf))


@settings(max_examples=75)
@given(cases(), thresholds, st.one_of(st.none(), st.integers(0, 600)))
def test_leaves_tile_the_grid_in_raster_order(case, alpha, spare):
    image, options = case
    fewest = len(paper_partition(image, 2, alpha=math.inf, **options))
    budget = None if spare is None else fewest + spare
    leaves = paper_partition(image, 2, alpha=alpha, max_tokens=budget, **options)
    rows, cols = image.shape[1] // 2, image.shape[2] // 2

    times_covered = np.zeros((rows, cols), dtype=int)
    token_map = np.full((rows, cols), -1)
    for index, (row, col, size) in enumerate(as_tuples(leaves)):
        assert row + size <= rows and col + size <= cols
        assert size & (size - 1) == 0
        assert size <= root_size(rows, cols, options["max_leaf"])
        if options["layout"] == "aligned":
            assert row % size == 0 and col % size == 0
        times_covered[row : row + size, col : col + size] += 1
        token_map[row : row + size, col : col + size] = index

    assert (times_covered == 1).all()
    corners = [box[:2] for box in as_tuples(leaves)]
    assert corners == sorted(corners)
    assert leaves.grid == (rows, cols)
    assert torch.equal(leaves.token_map(), torch.from_numpy(token_map))


@settings(max_examples=50)
@given(cases(), thresholds, st.integers(0, 600))
def test_the_budget_is_kept_and_not_wasted(case, alpha, spare):
    image, options = case
    fewest = len(paper_partition(image, 2, alpha=math.inf, **options))
    free = paper_partition(image, 2, alpha=alpha, **options)
    held = paper_partition(image, 2, alpha=alpha, max_tokens=fewest + spare, **options)
    assert len(held) <= fewest + spare
    if len(held) + 3 <= fewest + spare:  # one more split was affordable, so none can be left to make
        assert torch.equal(held.boxes, free.boxes)


@settings(max_examples=30)
@given(cases(), thresholds, thresholds)
def test_a_lower_threshold_refines(case, first, second):
    image, options = case
    fine = paper_partition(image, 2, alpha=min(first, second), **options)
    coarse = paper_partition(image, 2, alpha=max(first, second), **options)
    assert_refines(fine, coarse)


@settings(max_examples=30)
@given(cases(), st.integers(0, 300), st.integers(0, 300))
def test_a_larger_budget_refines(case, first, second):
    image, options = case
    fewest = len(paper_partition(image, 2, alpha=math.inf, **options))
    fine = paper_partition(image, 2, max_tokens=fewest + max(first, second), **options)
    coarse = paper_partition(image, 2, max_tokens=fewest + min(first, second), **options)
    assert_refines(fine, coarse)


def assert_refines(fine: qlip.Leaves, coarse: qlip.Leaves) -> None:
    """Every leaf of `fine` lies inside one leaf of `coarse`."""
    owner = coarse.token_map()
    for row, col, size in as_tuples(fine):
        assert owner[row : row + size, col : col + size].unique().numel() == 1


@settings(max_examples=15)
@given(cases())
def test_threshold_zero_is_the_uniform_grid(case):
    image, options = case
    leaves = paper_partition(image, 2, alpha=0.0, **options)
    rows, cols = image.shape[1] // 2, image.shape[2] // 2
    assert as_tuples(leaves) == [(row, col, 1) for row in range(rows) for col in range(cols)]
