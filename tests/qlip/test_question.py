"""What a question splits, against `qlip.partition` with the same roots allowed to split."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import qlip
from qlip import QLIPConfig
from qlip.cutting import ImageCutter
from qlip.question import QuestionCut, cut_for_question
from tests.qlip.samples import LAYOUTS, as_tuples, paper_partition, patchwork

CUTTER = ImageCutter(patch_size=4, native_size=16)  # a native grid of 4 x 4 cells
GRADIENT = {
    "criterion": "gradient",
    "geometry": "grid",
    "alpha": 0.5,
    "budget": "question",
    "max_tokens": None,
    "score_share": 0.0,
}


def waiting(grid: tuple[int, int] = (16, 16), seed: int = 0, **changes) -> QuestionCut:
    return cut(patchwork(grid, 4, seed=seed), **changes)


def cut(image: torch.Tensor, **changes) -> QuestionCut:
    return cut_for_question(partial(CUTTER.cut, image), CUTTER.native_grid, QLIPConfig(**{**GRADIENT, **changes}))


@settings(max_examples=60)
@given(
    st.tuples(st.integers(4, 24), st.integers(4, 24)),
    st.integers(0, 50),
    st.sampled_from(LAYOUTS),
    st.lists(st.booleans(), min_size=64, max_size=64),
)
def test_a_split_is_the_quadtree_of_which_only_these_roots_may_split(grid, seed, layout, flags):
    tree = waiting(grid, seed, layout=layout)
    roots = tree.roots
    shape = [math.ceil(extent / 2**roots.level) for extent in (roots.rows, roots.cols)]
    chosen = torch.tensor((flags * 9)[: shape[0] * shape[1]])
    image, options = patchwork(grid, 4, seed=seed), {"layout": layout, "max_leaf": 2**roots.level}
    expected = paper_partition(image, 4, alpha=0.5, splittable=chosen.view(shape), **options)
    got = tree.split(chosen)
    assert as_tuples(got.leaves) == as_tuples(expected)
    assert torch.equal(got.patches, qlip.extract_patches(image, expected, 4))


@settings(max_examples=60)
@given(st.integers(0, 50), st.integers(0, 40), st.lists(st.booleans(), min_size=16, max_size=16))
def test_partition_spends_its_budget_inside_the_roots_that_may_split(seed, spare, flags):
    image, may = patchwork((16, 16), 4, seed=seed), torch.tensor(flags).view(4, 4)
    held = paper_partition(image, 4, alpha=0.5, max_leaf=4, max_tokens=16 + spare, splittable=may)
    free = paper_partition(image, 4, alpha=0.5, max_leaf=4, splittable=may)
    assert len(held) <= 16 + spare
    if len(held) + 3 <= 16 + spare:  # one more split was affordable, so none can be left to make
        assert as_tuples(held) == as_tuples(free)
    small = held.boxes[held.sizes < 4]
    assert may[small[:, 0] // 4, small[:, 1] // 4].all()


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"splittable is torch.bool \(3, 3\); it must be bool, one for each of the"):
        paper_partition(patchwork((16, 16), 4), 4, alpha=0.5, max_leaf=4, splittable=torch.ones(3, 3).bool())


def test_what_is_asked_about_first_is_the_native_grid():
    tree = waiting()
    assert as_tuples(tree.first.leaves) == [(4 * row, 4 * col, 4) for row in range(4) for col in range(4)]
    assert as_tuples(tree.fine.leaves) == as_tuples(paper_partition(patchwork((16, 16), 4), 4, alpha=0.5, max_leaf=4))


@settings(max_examples=30)
@given(st.integers(0, 50), st.floats(0, 3), st.one_of(st.none(), st.integers(16, 40)))
def test_elsewhere_the_tree_is_that_of_the_scores_within_their_share(seed, share, budget):
    tree = waiting(seed=seed, score_share=share, max_tokens=budget)
    most = min(int(16 * (1 + share)), budget or 1000)
    expected = paper_partition(patchwork((16, 16), 4, seed=seed), 4, alpha=0.5, max_leaf=4, max_tokens=most)
    assert as_tuples(tree.kept.leaves) == as_tuples(expected)
    none, every = torch.zeros(16, dtype=torch.bool), torch.ones(16, dtype=torch.bool)
    assert as_tuples(tree.split(none).leaves) == as_tuples(expected)
    assert as_tuples(tree.split(every).leaves) == as_tuples(tree.fine.leaves)


def test_one_in_32_cells_is_split_unless_a_number_is_named():
    assert [waiting(grid).cells for grid in ((16, 16), (4, 4), (64, 16))] == [1, 1, 2]
    assert waiting(question_cells=5).cells == 5


def test_with_native_geometry_the_roots_are_clips_cells_of_the_image():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 40, 3), dtype=np.uint8))
    settings = QLIPConfig(budget="question", geometry="native", criterion="gradient", alpha=0.5, max_tokens=None)
    tree = cut_for_question(partial(CUTTER.prepare, image), CUTTER.native_grid, settings)
    assert tree.first.leaves.grid == (8, 16)  # 40 pixels on 4 native cells of 4 x 4 cells of 4 pixels
    assert as_tuples(tree.first.leaves) == [(4 * row, 4 * col, 4) for row in range(2) for col in range(4)]
    assert torch.equal(tree.relevance(torch.arange(8.0)), torch.arange(8.0))
    chosen = torch.arange(8) == 5
    expected = CUTTER.prepare(image, settings)  # every cell has detail, and all of it is split
    own = tree.split(chosen)
    inside = (expected.leaves.boxes[:, 0] // 4 == 1) & (expected.leaves.boxes[:, 1] // 4 == 1)
    small = own.leaves.sizes < 4
    assert torch.equal(own.leaves.boxes[small], expected.leaves.boxes[inside])
    assert torch.equal(own.patches[small], expected.patches[inside])


def test_relevance_is_the_attention_on_a_roots_leaves():
    tree = waiting((8, 8))
    weights = torch.arange(16.0)
    assert torch.equal(tree.relevance(weights), weights)
    finer = QuestionCut(tree.fine, tree.fine, tree.fine, tree.native_grid, tree.settings)
    sums = torch.zeros(4, 4)
    weights = torch.rand(len(finer.first.leaves))
    for (row, col, _), weight in zip(as_tuples(finer.first.leaves), weights, strict=True):
        sums[row // 2, col // 2] += weight
    torch.testing.assert_close(finer.relevance(weights), sums.flatten())


def test_the_attention_on_a_thumbnail_counts_for_the_roots_below_it():
    tree = waiting((8, 8), thumbnail=True)
    weights = torch.cat([torch.arange(16.0), torch.full((16,), 100.0)])
    assert torch.equal(tree.relevance(weights), torch.arange(16.0) + 100)
    with pytest.raises(ValueError, match="31 attention weights for an image of 32 tokens"):
        tree.relevance(weights[1:])


def test_the_most_relevant_roots_with_detail_are_split_and_ties_follow_the_raster():
    image = torch.zeros(3, 64, 64)
    for root in (1, 5, 6, 9):  # of 4 x 4 roots of 16 pixels
        row, col = 16 * (root // 4), 16 * (root % 4)
        image[:, row : row + 16 : 2, col : col + 16] = 1.0
    tree = cut(image, question_cells=3)
    relevance = torch.ones(16)
    relevance[0], relevance[6] = 3.0, 2.0  # the first is flat
    assert tree.choose_roots(relevance).nonzero()[:, 0].tolist() == [1, 5, 6]


def test_a_flat_image_has_nothing_to_split():
    tree = cut(torch.zeros(3, 64, 64))
    assert not tree.choose_roots(torch.rand(16)).any()
    assert tree.most_leaves == len(tree.first.leaves) == 16


@settings(max_examples=60)
@given(
    st.integers(0, 50),
    st.integers(1, 16),
    st.one_of(st.none(), st.integers(16, 120)),
    st.sampled_from([0.0, 0.5]),
    st.integers(0, 99),
)
def test_no_question_takes_more_than_the_budget_or_the_bound(seed, cells, budget, share, order):
    tree = waiting(seed=seed, question_cells=cells, max_tokens=budget, score_share=share)
    relevance = torch.rand(16, generator=torch.Generator().manual_seed(order))
    chosen = tree.choose_roots(relevance)
    leaves = len(tree.split(chosen).leaves)
    assert chosen.sum() <= cells
    assert leaves <= tree.most_leaves <= (budget or 10**6)
    unspent = [gain for gain, taken in zip(tree.gains.tolist(), chosen, strict=True) if gain > 0 and not taken]
    assert chosen.sum() == cells or budget is not None or not unspent
    if budget is not None and chosen.sum() < cells:
        assert all(leaves + gain > budget for gain in unspent)


def test_any_share_is_allowed_and_a_large_one_is_all_that_alpha_asks():
    tree = waiting(score_share=1e300)
    assert as_tuples(tree.kept.leaves) == as_tuples(tree.fine.leaves)


def test_cuts_of_different_grids_are_refused():
    with pytest.raises(ValueError, match=r"the grids differ: \(16, 16\), \(16, 16\), \(8, 8\) cells"):
        QuestionCut(waiting().first, waiting().kept, waiting((8, 8)).fine, 4, QLIPConfig())


@pytest.mark.parametrize("geometry", ["grid", "native"])
@pytest.mark.parametrize("size", [(60, 50), (40, 4), (17, 16)])
@pytest.mark.parametrize("budget", [1, 2, 5, 9])
def test_an_image_made_smaller_for_its_budget_has_one_grid_for_every_question(geometry, size, budget):
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    wanted = QLIPConfig(budget="question", geometry=geometry, max_tokens=budget)
    tree = cut_for_question(partial(CUTTER.prepare, Image.fromarray(noise)), CUTTER.native_grid, wanted)
    chosen = tree.choose_roots(torch.rand(len(tree.gains), generator=torch.Generator().manual_seed(0)))
    assert tree.split(chosen).leaves.grid == CUTTER.choose_grid(*size, wanted)
    assert len(tree.split(chosen).leaves) <= tree.most_leaves <= budget
