"""Leaves of tiles, and the order of tokens in place of a raster that newlines close."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlip
from qlip import Leaves, QLIPConfig
from qlip.tiles import Raster, cut_tiles, merge_tiles, order_tokens, partition_tiles
from tests.qlip.samples import as_tuples, patchwork

PLAIN = QLIPConfig(llm_size_bias=0.0)
UNIFORM = QLIPConfig(alpha=0.0, max_tokens=None, llm_size_bias=0.0)


def tiles_of(canvas: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
    """Slices (C, H, W) into rows x cols tiles, in raster order."""
    return torch.stack([tile for row in canvas.chunk(rows, 1) for tile in row.chunk(cols, 2)])


def whole(canvas: torch.Tensor) -> tuple[int, int, int, int]:
    return 0, 0, canvas.shape[1], canvas.shape[2]


@pytest.mark.parametrize(("rows", "cols"), [(3, 5), (1, 1), (48, 36)])
def test_the_rasters_own_tokens_take_its_positions(rows, cols):
    tokens = order_tokens(UNIFORM, Leaves.uniform((rows, cols)), Raster(9, rows, cols), base=9)
    assert tokens.span.positions.tolist() == list(range(9 + rows * (cols + 1)))
    assert tokens.span.length == tokens.span.count == 9 + rows * (cols + 1)
    features = torch.arange(9.0 + rows * cols)[:, None]
    base, raster = features[:9, 0].tolist(), features[9:, 0].view(rows, cols).tolist()
    expected = base + sum(([*row, -1.0] for row in raster), [])
    assert tokens.gather(features, torch.tensor([-1.0]))[:, 0].tolist() == expected


def test_leaves_lie_where_their_centres_are_and_close_the_rows_that_they_are_in():
    """By hand: 4 x 4 cells over a raster of 2 rows of 6 after a base of 4; pitch 7.

    The large leaf's centre is at (1/4, 1/4): row 0, column 1.5 - 0.5; that of the cell (0, 2) at (1/8, 5/8): row 0,
    column 3.75 - 0.5; that of (3, 3) at (7/8, 7/8): row 1, column 5.25 - 0.5. Newlines come after column 5.
    """
    boxes = torch.tensor([[0, 0, 2], [0, 2, 1], [3, 3, 1]])
    tokens = order_tokens(PLAIN, Leaves(boxes, (4, 4)), Raster(4, 2, 6))
    assert tokens.span.positions.tolist() == [4 + 1, 4 + 3.25, 4 + 6, 4 + 7 + 4.75, 4 + 7 + 6]
    assert tokens.order.tolist() == [0, 1, 3, 2, 3]
    assert tokens.span.length == 4 + 2 * 7
    upper = order_tokens(PLAIN, Leaves(boxes[:2], (4, 4)), Raster(4, 2, 6))
    assert upper.order.tolist() == [0, 1, 2]  # nothing is in the second row: it has no newline


@settings(max_examples=60)
@given(
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.integers(0, 99),
)
def test_any_tree_is_in_the_order_of_its_positions(grid, shape, seed):
    leaves = qlip.partition(patchwork(grid, 2, seed=seed, channels=1), 2, alpha=0.5, max_tokens=None, coarsest="any")
    raster = Raster(16, *shape)
    span = (tokens := order_tokens(PLAIN, leaves, raster, base=16)).span
    assert sorted(set(tokens.order.tolist())) == list(range(16 + len(leaves) + 1))  # all leaves, and newlines
    assert (span.positions.diff() >= 0).all() and span.positions[-1] < raster.length == span.length
    ends = span.positions[tokens.order == 16 + len(leaves)] - 16
    rows = ((span.positions[16:] - 16) // raster.pitch).unique()
    assert torch.equal(ends, rows * raster.pitch + raster.cols)


def test_tokens_weigh_by_their_side_in_tokens_of_the_raster():
    """A leaf of 4 cells on a grid twice as fine as the raster is 2 of its tokens long: 2^s; base and newline are 1."""
    boxes = torch.tensor([[0, 0, 4], [4, 0, 2]])
    leaves, raster = Leaves(boxes, (8, 4)), Raster(1, 4, 2)
    span = order_tokens(QLIPConfig(llm_size_bias=-0.5), leaves, raster, base=1).span
    torch.testing.assert_close(span.sizes, torch.tensor([1.0, 2**-0.5, 1.0, 1.0, 1.0]))
    assert order_tokens(QLIPConfig(llm_size_bias=-0.5), Leaves.uniform((4, 2)), raster, base=1).span.sizes is None
    together = order_tokens(QLIPConfig(llm_weight="native"), leaves, raster, base=1).span
    assert together.sizes.square().sum().item() == pytest.approx(raster.length)
    counted = order_tokens(QLIPConfig(llm_positions="sequential"), leaves, raster, base=1).span
    assert (counted.positions, counted.count, counted.length) == (None, 5, 5)


@pytest.mark.parametrize("criterion", ["gradient", "variance", "diagonal"])
@pytest.mark.parametrize("budget", [None, 100])
def test_trees_of_tiles_are_the_tree_of_the_image_that_they_make(criterion, budget):
    """The oracle is `partition` of the joined tiles, whose blocks of at most 4 of 8 cells do not cross the seams.

    "structure" looks a few pixels beyond a block and "objects" at whole objects, and tiles have their ends there.
    """
    canvas = patchwork((16, 24), 4, seed=3, channels=3)
    config = QLIPConfig(criterion=criterion, alpha=0.3, max_tokens=budget, coarsest="any")
    trees = partition_tiles(tiles_of(canvas, 2, 3), (2, 3), whole(canvas), config, 4, 8)
    leaves, kept = merge_tiles(trees, (2, 3), (0, 0, 16, 24))
    expected = qlip.partition(canvas, 4, criterion=criterion, alpha=0.3, max_tokens=budget, coarsest="any", max_leaf=4)
    assert kept.all() and sorted(as_tuples(leaves)) == sorted(as_tuples(expected))


def test_an_odd_number_of_cells_is_cut_to_the_last():
    """27 x 27 cells, SigLIP's: blocks of two beside a row and a column of single cells; 6 pixels are left over."""
    tiles = torch.zeros(2, 3, 27 * 14 + 6, 27 * 14 + 6)
    config = QLIPConfig(max_tokens=None)
    cuts = cut_tiles(torch.cat([tiles[:1], tiles]), (1, 2), (0, 0, 384, 768), config, 14, 27)
    assert [len(cut.leaves) for cut in cuts] == [27 * 27, 13 * 13 + 53, 13 * 13 + 53]
    assert all((cut.leaves.token_map() >= 0).all() for cut in cuts)


def test_the_budget_goes_to_the_tiles_that_have_detail():
    canvas = torch.zeros(3, 32, 32)
    canvas[:, :16, 16:] = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    config = QLIPConfig(criterion="gradient", alpha=0.1, coarsest="any", max_tokens=4 * 4 + 3 * 5)
    trees = partition_tiles(tiles_of(canvas, 2, 2), (2, 2), whole(canvas), config, 2, 8)
    assert [len(tree) for tree in trees] == [4, 4 + 3 * 5, 4, 4]


def test_the_border_of_the_padding_is_no_detail():
    """A bright flat picture on black: its border would be split, if the padding's pixels were scored."""
    canvas = torch.full((3, 32, 64), -2.0)
    canvas[:, 5:27] = 2.0
    tiles = tiles_of(canvas, 1, 2)
    config = QLIPConfig(coarsest="any", max_tokens=None)
    for criterion in ("gradient", "structure", "objects"):
        changed = QLIPConfig(**{**config.to_dict(), "criterion": criterion})
        trees = partition_tiles(tiles, (1, 2), (5, 0, 22, 64), changed, 4, 8)
        assert [len(tree) for tree in trees] == [4, 4]
        naive = partition_tiles(tiles, (1, 2), whole(canvas), changed, 4, 8)
        assert min(len(tree) for tree in naive) > 4


def test_leaves_that_only_see_padding_are_left_out():
    trees = [Leaves.uniform((4, 4))] * 2
    leaves, kept = merge_tiles(trees, (1, 2), (1, 0, 2, 8))
    assert leaves.grid == (2, 8) and as_tuples(leaves) == [
        (row, col + 4 * tile, 1) for tile in (0, 1) for row in (0, 1) for col in range(4)
    ]
    assert kept.view(2, 4, 4)[:, 1:3].all() and kept.sum() == 16
    coarse = Leaves(torch.tensor([[0, 0, 2], [0, 2, 2], [2, 0, 2], [2, 2, 2]]), (4, 4))
    leaves, kept = merge_tiles([coarse], (1, 1), (1, 0, 2, 4))
    assert kept.all() and as_tuples(leaves) == [(-1, 0, 2), (-1, 2, 2), (1, 0, 2), (1, 2, 2)]


def test_a_budget_below_the_coarsest_trees_is_refused():
    config = QLIPConfig(max_tokens=10)
    with pytest.raises(ValueError, match=r"max_tokens is 10, but the coarsest trees of 3 tiles of 8 x 8 cells have 12"):
        partition_tiles(torch.zeros(3, 3, 16, 16), (1, 3), (0, 0, 16, 48), config, 2, 8)


@pytest.mark.parametrize(
    ("image", "side"),
    [((0, 0, 16, 16), 1), ((0, 0, 16, 10), 1), ((0, 0, 16, 31), 1), ((0, 0, 16, 32), 2), ((0, 0, 8, 32), 2)],
)
def test_no_leaf_is_longer_than_a_cell_of_the_base_along_the_images_longer_side(image, side):
    """LLaVA-1.6 puts small squares and tall images on two tiles, of which they fill one."""
    trees = partition_tiles(torch.zeros(2, 3, 16, 16), (1, 2), image, QLIPConfig(max_tokens=None), 2, 8)
    assert all((tree.sizes == side).all() for tree in trees)


def test_a_tight_budget_lifts_the_bound_on_leaves():
    tiles = torch.zeros(4, 3, 16, 16)
    for budget, side in ((None, 2), (64, 2), (63, 4), (16, 4)):
        trees = partition_tiles(tiles, (2, 2), (0, 0, 32, 32), QLIPConfig(max_tokens=budget), 2, 8)
        assert [len(tree) for tree in trees] == [math.ceil(8 / side) ** 2] * 4
