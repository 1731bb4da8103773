"""`qlip.partition` against a naive quadtree, on noise and on photographs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import qlip
from tests.conftest import Photograph
from tests.qlip.reference import NaiveQuadtree, clear_budgets, clear_thresholds
from tests.qlip.samples import CRITERIA, LAYOUTS, as_tuples, paper_partition, patchwork

GRIDS = ((1, 1), (1, 9), (9, 1), (2, 2), (3, 5), (7, 13), (9, 20), (16, 16), (17, 17))
PATCH = 4

criteria = pytest.mark.parametrize("criterion", CRITERIA)
layouts = pytest.mark.parametrize("layout", LAYOUTS)
ODD_GRIDS = ((7, 13), (9, 20))
"""Cut with every criterion."""
CASES = [
    *itertools.product(ODD_GRIDS, LAYOUTS, CRITERIA),
    *itertools.product(
        (grid for grid in GRIDS if grid not in ODD_GRIDS), LAYOUTS, ("gradient", "structure", "objects")
    ),
]


def check_against_reference(image: torch.Tensor, patch_size: int, **options) -> None:
    """The same leaves at several thresholds, and at several budgets for the extreme ones and one between them."""
    tree = NaiveQuadtree(image.numpy(), patch_size, **options)
    thresholds = [0.0, *clear_thresholds(list(tree.effective.values())), math.inf]
    for alpha in thresholds:
        found = paper_partition(image, patch_size, alpha=alpha, **options)
        assert found.grid == (tree.rows, tree.cols)
        assert as_tuples(found) == tree.leaves(alpha)
    for alpha, order in itertools.product({0.0, thresholds[len(thresholds) // 2], math.inf}, ("score", "side")):
        for budget in clear_budgets(tree, alpha, order):
            found = paper_partition(image, patch_size, alpha=alpha, max_tokens=budget, split_order=order, **options)
            assert as_tuples(found) == tree.leaves(alpha, budget, order), f"{alpha=}, {budget=}, {order=}"


@pytest.mark.parametrize(("grid", "layout", "criterion"), CASES, ids=str)
def test_equals_the_naive_quadtree_on_noise(grid, layout, criterion):
    check_against_reference(patchwork(grid), PATCH, criterion=criterion, layout=layout)


@criteria
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_naive_quadtree_at_every_threshold(seed, criterion):
    """Cells of 2 x 2 pixels, so that the pixels on edges and corners of blocks decide often."""
    image = patchwork((8, 8), 2, seed=seed, channels=1)
    tree = NaiveQuadtree(image.numpy(), 2, criterion=criterion)
    for alpha in clear_thresholds(list(tree.effective.values()), tuple(np.linspace(0, 1, 21))):
        assert as_tuples(paper_partition(image, 2, alpha=alpha, criterion=criterion)) == tree.leaves(alpha)


@criteria
@pytest.mark.parametrize(
    ("grid", "max_leaf", "layout"),
    [((9, 20), 1, "aligned"), ((9, 20), 2, "centered"), ((16, 16), 2, "aligned"), ((16, 16), 64, "centered")],
    ids=str,
)
def test_equals_the_naive_quadtree_with_capped_leaves(grid, max_leaf, layout, criterion):
    check_against_reference(patchwork(grid, seed=1), PATCH, criterion=criterion, layout=layout, max_leaf=max_leaf)


@criteria
@pytest.mark.parametrize(
    ("name", "grid", "layout"),
    [
        ("astronaut", (7, 13), "centered"),
        ("coffee", (9, 20), "aligned"),
        ("chelsea", (17, 17), "centered"),
        ("page", (16, 16), "aligned"),
    ],
    ids=str,
)
def test_equals_the_naive_quadtree_on_photographs(photograph: Photograph, name, grid, layout, criterion):
    image = photograph(name, grid[0] * 8, grid[1] * 8, normalised=False)
    check_against_reference(image, 8, criterion=criterion, layout=layout)


@criteria
@layouts
def test_equals_the_naive_quadtree_on_a_normalised_photograph(photograph: Photograph, layout, criterion):
    tree_options = {"criterion": criterion, "layout": layout}
    image = photograph("rocket", 12 * 14, 19 * 14)
    tree = NaiveQuadtree(image.numpy(), 14, **tree_options)
    for alpha in clear_thresholds(list(tree.effective.values())):
        assert as_tuples(paper_partition(image, 14, alpha=alpha, **tree_options)) == tree.leaves(alpha)


@layouts
@pytest.mark.parametrize("structure_size", [3, 5, 9])
def test_equals_the_naive_quadtree_for_other_structure_sizes(photograph: Photograph, structure_size, layout):
    image = photograph("coffee", 9 * 8, 13 * 8, normalised=False)
    check_against_reference(image, 8, criterion="structure", layout=layout, structure_size=structure_size)


@criteria
@pytest.mark.parametrize(("patch_size", "channels"), [(2, 1), (3, 4), (16, 1)])
def test_any_patch_size_and_number_of_channels(patch_size, channels, criterion):
    image = patchwork((9, 12), patch_size, channels=channels)
    check_against_reference(image, patch_size, criterion=criterion)


@layouts
@pytest.mark.parametrize("seed", [0, 7])
def test_random_trees_follow_the_generator(seed, layout):
    image = patchwork((17, 40))
    tree = NaiveQuadtree(image.numpy(), PATCH, criterion="random", layout=layout, seed=seed)
    for alpha in (0.3, 0.6, 0.9):
        generator = torch.Generator().manual_seed(seed)
        options = {"criterion": "random", "layout": layout, "generator": generator}
        assert as_tuples(paper_partition(image, PATCH, alpha=alpha, **options)) == tree.leaves(alpha)


# Examples


@criteria
def test_threshold_zero_splits_a_blank_image_too(criterion):
    assert len(paper_partition(torch.zeros(3, 32, 32), PATCH, alpha=0.0, criterion=criterion)) == 64


@pytest.mark.parametrize("criterion", ["gradient", "structure", "objects", "variance", "diagonal"])
@pytest.mark.parametrize("level", [0.0, 0.1, -1.7922625, 255.0])
def test_a_blank_image_scores_exactly_zero(level, criterion):
    leaves = paper_partition(torch.full((3, 48, 48), level), PATCH, alpha=1e-30, criterion=criterion)
    assert as_tuples(leaves) == [(row, col, 4) for row in (0, 4, 8) for col in (0, 4, 8)]


@pytest.mark.parametrize(
    ("grid", "layout", "expected"),
    [
        ((1, 2), "aligned", [(0, 0, 1), (0, 1, 1)]),
        ((4, 4), "aligned", [(0, 0, 2), (0, 2, 2), (2, 0, 2), (2, 2, 2)]),
        ((4, 5), "aligned", [(0, 0, 2), (0, 2, 2), (0, 4, 1), (1, 4, 1), (2, 0, 2), (2, 2, 2), (2, 4, 1), (3, 4, 1)]),
        ((4, 5), "centered", [(0, 0, 2), (0, 2, 2), (0, 4, 1), (1, 4, 1), (2, 0, 2), (2, 2, 2), (2, 4, 1), (3, 4, 1)]),
    ],
)
def test_an_infinite_threshold_leaves_the_roots(grid, layout, expected):
    image = patchwork(grid)
    assert as_tuples(paper_partition(image, PATCH, alpha=math.inf, layout=layout)) == expected


def test_centered_roots_are_offset_in_whole_cells_rounded_down():
    leaves = paper_partition(patchwork((11, 8)), PATCH, alpha=math.inf, layout="centered")
    large = [box for box in as_tuples(leaves) if box[2] == 4]
    small = {box[:2] for box in as_tuples(leaves) if box[2] == 1}
    assert large == [(1, 0, 4), (1, 4, 4), (5, 0, 4), (5, 4, 4)]
    assert small == {(row, col) for row in (0, 9, 10) for col in range(8)}


def test_blocks_that_stick_out_split_until_inside():
    leaves = paper_partition(patchwork((8, 15)), PATCH, alpha=math.inf)
    right_edge = [box for box in as_tuples(leaves) if box[1] >= 12]
    assert right_edge == sorted([(row, 12, 2) for row in (0, 2, 4, 6)] + [(row, 14, 1) for row in range(8)])


# What comes in and what goes out


def test_leaves_are_a_frozen_table_on_the_cpu():
    leaves = paper_partition(patchwork((7, 13)), PATCH, alpha=3.0)
    assert leaves.boxes.dtype == torch.int64 and leaves.boxes.shape == (len(leaves), 3)
    assert leaves.boxes.device.type == "cpu"
    expected = [(row + (size - 1) / 2, col + (size - 1) / 2) for row, col, size in as_tuples(leaves)]
    assert leaves.centres.is_floating_point() and leaves.centres.tolist() == [list(centre) for centre in expected]
    with pytest.raises(AttributeError):
        leaves.grid = (1, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_any_float_type_gives_the_tree_of_the_same_values(dtype):
    image = patchwork((8, 12)).clamp(-50, 50).to(dtype)
    expected = paper_partition(image.float(), PATCH, alpha=3.0, max_tokens=60)
    assert torch.equal(paper_partition(image, PATCH, alpha=3.0, max_tokens=60).boxes, expected.boxes)


def test_a_view_that_is_not_contiguous_gives_the_same_tree():
    image = patchwork((8, 12))
    view = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert torch.equal(paper_partition(view, PATCH, alpha=3.0).boxes, paper_partition(image, PATCH, alpha=3.0).boxes)


def test_the_image_is_left_as_it_was():
    image = patchwork((8, 12))
    before = image.clone()
    for criterion in CRITERIA:
        paper_partition(image, PATCH, alpha=1.0, criterion=criterion)
    assert torch.equal(image, before)


@pytest.mark.parametrize(("height", "width"), [(30, 32), (32, 30), (0, 32)])
def test_sides_must_be_multiples_of_the_patch_size(height, width):
    with pytest.raises(ValueError, match=rf"(?s)(?=.*\b{height}\b)(?=.*\b{width}\b)(?=.*\b4\b)"):
        paper_partition(torch.zeros(3, height, width), 4)


def test_whole_number_images_are_refused():
    with pytest.raises(TypeError, match="uint8"):
        paper_partition(torch.zeros(3, 32, 32, dtype=torch.uint8), 4)


@pytest.mark.parametrize("shape", [(32, 32), (1, 3, 32, 32)])
def test_an_image_has_three_axes(shape):
    with pytest.raises(ValueError, match="32"):
        paper_partition(torch.zeros(shape), 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -0.5}, "-0.5"),
        ({"alpha": math.nan}, "nan"),
        ({"max_tokens": 0}, "0"),
        ({"criterion": "entropy"}, "entropy.*gradient.*structure.*variance.*diagonal.*random"),
        ({"layout": "spiral"}, "spiral.*aligned.*centered"),
        ({"max_leaf": 3}, "3"),
        ({"max_leaf": 0}, "0"),
        ({"coarsest": "finest"}, "finest.*any.*native"),
        ({"coarsest": "native", "native_grid": 0}, "native_grid is 0"),
        ({"criterion": "structure", "structure_size": 4}, "4"),
    ],
    ids=str,
)
def test_a_bad_option_is_named_with_what_is_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        paper_partition(torch.zeros(3, 32, 32), 4, **options)


def test_the_defaults_are_those_of_the_settings(photograph: Photograph):
    image = photograph("coffee", 48 * 14, 64 * 14)
    leaves = qlip.partition(image)
    assert torch.equal(leaves.boxes, qlip.QLIPImageProcessor().partition(image).boxes)
    assert 24 * 24 < len(leaves) <= 1152 and set(leaves.sizes.tolist()) == {1, 2}


def test_the_tower_bounds_leaves_as_far_as_the_budget_allows():
    image = torch.zeros(3, 8 * PATCH, 8 * PATCH)
    for native_grid, budget, size in ((8, None, 1), (4, None, 2), (2, 64, 4), (8, 16, 2), (8, 4, 4)):
        leaves = qlip.partition(image, PATCH, native_grid=native_grid, max_tokens=budget)
        assert set(leaves.sizes.tolist()) == {size}
    assert set(qlip.partition(image, PATCH, native_grid=8, max_leaf=2).sizes.tolist()) == {2}


def test_a_budget_below_the_roots_names_both_numbers():
    with pytest.raises(ValueError, match=r"(?s)(?=.*\b15\b)(?=.*\b16\b)"):
        paper_partition(torch.zeros(3, 64, 64), 4, max_tokens=15, max_leaf=4)


@pytest.mark.parametrize("alpha", [5e-324, 1e-46, 1e-30])
@pytest.mark.parametrize("budget", [None, 20])
def test_the_smallest_threshold_splits_nothing_flat(alpha, budget):
    leaves = qlip.partition(torch.zeros(3, 112, 112), 14, alpha=alpha, max_tokens=budget, coarsest="any")
    assert len(leaves) == 4


@pytest.mark.filterwarnings("error")
def test_the_largest_threshold_is_infinity():
    noise = torch.rand(3, 112, 112, generator=torch.Generator().manual_seed(0))
    assert len(qlip.partition(noise, 14, alpha=1e300, coarsest="any")) == 4
    with pytest.raises(ValueError, match="alpha is 1000"):
        qlip.partition(noise, 14, alpha=10**400)
