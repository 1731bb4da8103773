"""What a question splits, against the rule by its definition, in exact arithmetic."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
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
    "question_share": 0.5,
}


def waiting(grid: tuple[int, int] = (16, 16), seed: int = 0, **changes) -> QuestionCut:
    return cut(patchwork(grid, 4, seed=seed), **changes)


def cut(image: torch.Tensor, **changes) -> QuestionCut:
    return cut_for_question(partial(CUTTER.cut, image), CUTTER.native_grid, QLIPConfig(**{**GRADIENT, **changes}))


def greedy(tree: QuestionCut, relevance: torch.Tensor) -> list[tuple[int, ...]]:
    """The rule by definition: of all leaves that alpha splits, the one with the most attention splits next."""
    roots, finest = tree.roots, tree.fine.leaves.sizes[tree.fine.leaves.token_map()]
    side, across = 2**roots.level, math.ceil(roots.cols / 2**roots.level)

    def attention(box: tuple[int, ...]) -> Fraction:
        row, col = (box[0] - roots.top) // side, (box[1] - roots.left) // side
        inside = (min(side, roots.rows - row * side), min(side, roots.cols - col * side))
        return Fraction(float(relevance[row * across + col])) * box[2] ** 2 / math.prod(inside)

    leaves = set(as_tuples(tree.kept.leaves))
    for _ in range(tree.splits):
        can_split = [box for box in leaves if finest[box[0], box[1]] < box[2]]
        row, col, size = min(can_split, key=lambda box: (-attention(box), -box[2], box))
        half = size // 2
        leaves -= {(row, col, size)}
        leaves |= {(row + down, col + right, half) for down in (0, half) for right in (0, half)}
    return sorted(leaves)


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(4, 24), st.integers(4, 24)),
    st.integers(0, 50),
    st.sampled_from(LAYOUTS),
    st.sampled_from(["native", "any"]),
    st.floats(0, 3),
    st.floats(0, 3),
    st.one_of(st.none(), st.integers(0, 60)),
)
def test_the_leaf_that_is_attended_to_most_splits_next(grid, seed, layout, coarsest, score, question, spare):
    image, options = patchwork(grid, 4, seed=seed), {"layout": layout, "coarsest": coarsest}
    shares = {"score_share": score, "question_share": question}
    fewest = len(paper_partition(image, 4, alpha=math.inf, layout=layout))  # less lifts the bound of "native"
    tree = cut(image, **options, **shares, max_tokens=None if spare is None else fewest + spare)
    roots = math.prod(math.ceil(extent / 2**tree.roots.level) for extent in (tree.roots.rows, tree.roots.cols))
    relevance = torch.randint(0, 9, (roots,), generator=torch.Generator().manual_seed(seed)) / 8
    found = tree.choose_leaves(relevance)
    assert as_tuples(found) == greedy(tree, relevance)
    assert len(found) == tree.most_leaves
    assert torch.equal(tree.take(found).patches, qlip.extract_patches(image, found, 4))


def test_what_is_asked_about_first_is_the_native_grid():
    tree = waiting()
    assert as_tuples(tree.first.leaves) == [(4 * row, 4 * col, 4) for row in range(4) for col in range(4)]
    assert as_tuples(tree.fine.leaves) == as_tuples(paper_partition(patchwork((16, 16), 4), 4, alpha=0.5, max_leaf=4))


@settings(max_examples=30)
@given(st.integers(0, 50), st.integers(0, 300), st.one_of(st.none(), st.integers(16, 40)))
def test_the_scores_split_first_within_their_share(seed, percent, budget):
    tree = waiting(seed=seed, score_share=percent / 100, max_tokens=budget)
    most = min(16 + 16 * percent // 100, budget or 1000)
    image, order = patchwork((16, 16), 4, seed=seed), {"split_order": tree.settings.split_order}
    expected = paper_partition(image, 4, alpha=0.5, max_leaf=4, max_tokens=most, **order)
    assert as_tuples(tree.kept.leaves) == as_tuples(expected)


@pytest.mark.parametrize("percent", [3, 6, 9, 15, 21, 30, 99])
def test_shares_are_counted_in_decimals(percent):
    """0.15 times 100 is 15, five splits, though 100 * 1.15 is less than 115 in binary."""
    image = patchwork((40, 40), 4)
    settings = QLIPConfig(**{**GRADIENT, "alpha": 0.0, "score_share": percent / 100, "question_share": 0.06})
    tree = cut_for_question(partial(ImageCutter(4, 40).cut, image), 10, settings)
    assert (len(tree.first.leaves), len(tree.kept.leaves), tree.splits) == (100, 100 + percent, 2)


def test_a_question_splits_one_block_at_least_unless_it_has_no_share_or_the_budget_is_spent():
    shares = {"score_share": 0.0, "question_share": 0.001}
    assert [waiting(**shares, max_tokens=most).splits for most in (None, 19, 18)] == [1, 1, 0]
    assert waiting(**{**shares, "question_share": 0.0}).splits == 0


def test_what_the_scores_leave_of_their_share_is_the_questions():
    image = torch.zeros(3, 64, 64)
    image[:, ::2, :16] = 1.0  # one of four columns of roots, 4 blocks, has detail
    tree = cut(image, score_share=10.0, question_share=0.0)
    assert as_tuples(tree.kept.leaves) == as_tuples(tree.fine.leaves)
    assert tree.splits == 0
    halves = cut(image, score_share=0.25, question_share=0.5)  # 4 and 8 of 16: 1 and 3 splits of three more leaves
    assert (len(halves.kept.leaves), halves.splits) == (19, 3)


def test_with_native_geometry_the_roots_are_clips_cells_of_the_image():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 40, 3), dtype=np.uint8))
    settings = QLIPConfig(budget="question", geometry="native", criterion="gradient", alpha=0.5, max_tokens=None)
    settings = replace(settings, score_share=0.0, question_share=15 / 8)  # one cell of 4 x 4 as finely as alpha asks
    tree = cut_for_question(CUTTER.make_preparer(image), CUTTER.native_grid, settings)
    assert tree.first.leaves.grid == (8, 16)  # 40 pixels on 4 native cells of 4 x 4 cells of 4 pixels
    assert as_tuples(tree.first.leaves) == [(4 * row, 4 * col, 4) for row in range(2) for col in range(4)]
    assert torch.equal(tree.relevance(torch.arange(8.0)), torch.arange(8.0))
    expected = CUTTER.prepare(image, settings)  # every cell has detail, and all of it is split
    own = tree.refine((torch.arange(8.0) == 5).float())
    inside = (expected.leaves.boxes[:, 0] // 4 == 1) & (expected.leaves.boxes[:, 1] // 4 == 1)
    small = own.leaves.sizes < 4
    assert torch.equal(own.leaves.boxes[small], expected.leaves.boxes[inside])
    assert torch.equal(own.patches[small], expected.patches[inside])


def test_relevance_is_the_attention_on_a_roots_leaves():
    tree = waiting((8, 8))
    weights = torch.arange(16.0)
    assert torch.equal(tree.relevance(weights), weights)
    finer = replace(tree, first=tree.fine)
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


def test_several_roots_are_seen_twice_as_fine_before_one_is_seen_four_times_as_fine():
    image = torch.zeros(3, 64, 64)
    for root in (1, 5, 6, 9):  # of 4 x 4 roots of 16 pixels
        row, col = 16 * (root // 4), 16 * (root % 4)
        image[:, row : row + 16 : 2, col : col + 16] = 1.0
    relevance = torch.ones(16)
    relevance[0], relevance[6] = 9.0, 3.0  # the first is flat; the other has less than four times what its rivals have
    split = [
        {box[2] for box in as_tuples(cut(image, question_share=splits * 3 / 16).choose_leaves(relevance))}
        for splits in (4, 5)
    ]
    assert split == [{2, 4}, {1, 2, 4}]


def test_a_flat_image_has_nothing_to_split():
    tree = cut(torch.zeros(3, 64, 64), question_share=9.0)
    assert tree.splits == 0
    assert tree.most_leaves == len(tree.refine(torch.rand(16)).leaves) == 16


def test_any_share_is_allowed_and_a_large_one_is_all_that_alpha_asks():
    assert as_tuples(waiting(score_share=1e300).kept.leaves) == as_tuples(waiting().fine.leaves)
    asked = waiting(question_share=1e300)
    assert as_tuples(asked.choose_leaves(torch.rand(16))) == as_tuples(asked.fine.leaves)


def test_cuts_of_different_grids_are_refused():
    with pytest.raises(ValueError, match=r"the grids differ: \(16, 16\), \(16, 16\), \(16, 16\), \(8, 8\) cells"):
        replace(waiting(), fine=waiting((8, 8)).fine)


def test_given_leaves_of_another_grid_are_refused():
    image = Image.new("RGB", (64, 64))
    with pytest.raises(ValueError, match=r"the image has a grid of \(16, 16\) cells, its leaves one of \(8, 8\)"):
        CUTTER.make_preparer(image)(QLIPConfig(), qlip.Leaves.uniform((8, 8)))


@pytest.mark.parametrize("geometry", ["grid", "native"])
@pytest.mark.parametrize("size", [(60, 50), (40, 4), (17, 16)])
@pytest.mark.parametrize("budget", [1, 2, 5, 9])
def test_an_image_made_smaller_for_its_budget_has_one_grid_for_every_question(geometry, size, budget):
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    wanted = QLIPConfig(budget="question", geometry=geometry, max_tokens=budget)
    tree = cut_for_question(CUTTER.make_preparer(Image.fromarray(noise)), CUTTER.native_grid, wanted)
    found = tree.refine(torch.rand(len(tree.first.leaves), generator=torch.Generator().manual_seed(0))).leaves
    assert found.grid == CUTTER.choose_grid(*size, wanted)
    assert len(found) == tree.most_leaves <= budget


@pytest.mark.parametrize("budget", [20, 50, 100, 200, 300, 600])
def test_a_flat_picture_has_nothing_to_split_whatever_the_budget(budget):
    """Also where the budget merges native cells."""
    settings = QLIPConfig(budget="question", max_tokens=budget)
    tree = cut_for_question(ImageCutter().make_preparer(Image.new("RGB", (600, 600), "gray")), 24, settings)
    assert tree.splits == 0 and len(tree.fine.leaves) == len(tree.first.leaves) <= budget


@pytest.mark.parametrize("layout", ["aligned", "centered"])
def test_where_a_budget_moves_the_roots_the_question_still_decides(layout):
    pixels = np.full((450, 640, 3), 120, np.uint8)
    pixels[::6, :320] = 255
    pixels[::6, 400:] = 0
    settings = QLIPConfig(budget="question", layout=layout, max_tokens=250, noise_floor=False)
    tree = cut_for_question(ImageCutter().make_preparer(Image.fromarray(pixels)), 24, settings)
    assert tree.splits > 0
    shape = [-(-extent // 2**tree.roots.level) for extent in (tree.roots.rows, tree.roots.cols)]
    found = []
    for place in ((0, 0), (shape[0] // 2, shape[1] - 1)):
        relevance = torch.zeros(shape)
        relevance[place] = 1
        found.append(tree.choose_leaves(relevance.flatten()).boxes.tolist())
    assert found[0] != found[1]
