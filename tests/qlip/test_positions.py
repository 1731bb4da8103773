"""Positions of leaves in the tower (`qlip.interpolate_positions`) and in the language model (`raster_positions`)."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import qlip
from qlip.mlp import CoordinateMLP, authors_frequencies
from tests.qlip.reference import raster_position
from tests.qlip.samples import paper_partition

TABLE_MODES = ("bilinear", "bicubic")
GRIDS = ((1, 1), (1, 9), (9, 1), (7, 13), (17, 40), (24, 24), (33, 33), (40, 17))
ERROR = 0.02  # what correct interpolation of a smooth 24 x 24 table may err by; a table read amiss errs by more than 1


def leaves_of(*boxes: tuple[int, int, int], grid: tuple[int, int]) -> qlip.Leaves:
    return qlip.Leaves(torch.tensor(boxes), grid)


def uniform(grid: tuple[int, int]) -> qlip.Leaves:
    return paper_partition(torch.zeros(1, grid[0] * 2, grid[1] * 2), 2, alpha=0.0)


def uneven(grid: tuple[int, int], alpha: float = 0.5, seed: int = 0) -> qlip.Leaves:
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(1, grid[0] * 2, grid[1] * 2)
    return paper_partition(image, 2, alpha=alpha, criterion="random", generator=generator)


def random_table(side: int, dim: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(side * side, dim, generator=torch.Generator().manual_seed(seed))


def sampled(table: Tensor, leaves: qlip.Leaves, mode: str) -> Tensor:
    """torch's own grid sampling of the table, laid out (1, D, n, n), at the leaves' centres; float64."""
    side = math.isqrt(len(table))
    image = table.double().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    row, col, size = leaves.boxes.double().unbind(1)
    extents = [extent - 1 for extent in leaves.grid]
    u_row, u_col = (
        -1 + 2 * (start + (size - 1) / 2) / extent if extent else torch.zeros_like(start)
        for start, extent in zip((row, col), extents, strict=True)
    )
    points = torch.stack([u_col, u_row], dim=-1)[None, None]  # grid_sample takes (x, y)
    return F.grid_sample(image, points, mode=mode, align_corners=True, padding_mode="border")[0, :, 0].T


def smooth(row: Tensor, col: Tensor) -> Tensor:
    """Slow waves of the place (0 to 1 across the picture), different along rows and columns: (..., 6)."""
    waves = [torch.sin(3 * row), torch.cos(2 * row + 1), torch.sin(4 * col + 1), torch.cos(3 * col)]
    return torch.stack([*waves, torch.sin(2 * row + 3 * col), row - col / 2], dim=-1)


def smooth_table(side: int) -> Tensor:
    axis = torch.linspace(0, 1, side)
    return smooth(*torch.meshgrid(axis, axis, indexing="ij")).reshape(side * side, -1)


@pytest.mark.parametrize("mode", TABLE_MODES)
@pytest.mark.parametrize("side", [1, 2, 7, 24])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_equals_sampling_the_table_as_an_image(grid, side, mode):
    table = random_table(side)
    for leaves in (uniform(grid), uneven(grid), uneven(grid, alpha=math.inf)):
        found = qlip.interpolate_positions(table, leaves, mode)
        assert found.shape == (len(leaves), 5) and found.dtype == torch.float32
        torch.testing.assert_close(found.double(), sampled(table, leaves, mode), atol=2e-6, rtol=1e-5)


@settings(max_examples=60)
@given(
    side=st.integers(1, 24),
    dim=st.integers(1, 9),
    seed=st.integers(0, 99),
    mode=st.sampled_from(TABLE_MODES),
    leaf_position=st.sampled_from(["centre", "mean"]),
)
def test_the_native_grid_gives_the_table_exactly(side, dim, seed, mode, leaf_position):
    table = random_table(side, dim, seed)
    found = qlip.interpolate_positions(table, uniform((side, side)), mode, leaf_position=leaf_position)
    assert torch.equal(found, table)


@pytest.mark.parametrize("mode", TABLE_MODES)
@pytest.mark.parametrize("factor", [2, 4])
def test_whole_leaves_of_an_enlarged_grid_follow_their_centres(mode, factor):
    """Leaves of 2 x 2 or 4 x 4 cells laid like the native grid have their centres' positions, not their corners'."""
    starts = range(0, 64, factor)
    leaves = leaves_of(*[(row, col, factor) for row in starts for col in starts], grid=(64, 64))
    centre = (leaves.boxes[:, :2] + (factor - 1) / 2) / 63
    found = qlip.interpolate_positions(smooth_table(24), leaves, mode)
    torch.testing.assert_close(found, smooth(centre[:, 0], centre[:, 1]), atol=2 * ERROR, rtol=0)


@pytest.mark.parametrize("mode", TABLE_MODES)
@pytest.mark.parametrize("grid", [(20, 20), (48, 48), (17, 40), (40, 17)], ids=str)
def test_a_smooth_table_stays_smooth_at_every_size(grid, mode):
    """Channels and places keep apart: the table is (n, n, D) and not (D, n, n)."""
    leaves = uneven(grid)
    extent = torch.tensor(grid) - 1
    centres = leaves.centres / extent
    expected = smooth(centres[:, 0], centres[:, 1])
    found = qlip.interpolate_positions(smooth_table(24), leaves, mode)
    assert (found - expected).norm() / expected.norm() < ERROR


@pytest.mark.parametrize("mode", TABLE_MODES)
def test_rows_and_columns_keep_their_roles_on_oblong_grids(mode):
    rows = torch.arange(8.0).repeat_interleave(8)[:, None]
    found = qlip.interpolate_positions(rows, uniform((15, 29)), mode).reshape(15, 29)
    torch.testing.assert_close(found, found[:, :1].expand(15, 29))
    torch.testing.assert_close(found[::2, 0], torch.arange(8.0), atol=1e-5, rtol=0)


def any_mode(mode: str, table: Tensor, leaves: qlip.Leaves, **options) -> Tensor:
    prior = small_prior(table.shape[1]) if mode == "mlp" else None
    with torch.no_grad():
        return qlip.interpolate_positions(table, leaves, mode, mlp=prior, **options)


def small_prior(dim: int) -> qlip.CoordinateMLP:
    torch.manual_seed(0)
    return qlip.CoordinateMLP(dim, hidden=16, depth=2, bands=3)


@pytest.mark.parametrize("leaf_position", ["centre", "mean"])
@pytest.mark.parametrize("mode", [*TABLE_MODES, "mlp"])
def test_a_position_does_not_depend_on_the_rest_of_the_tree(mode, leaf_position):
    """A leaf of a grid has the same position whatever the largest coordinate of other leaves."""
    table = random_table(12)
    first = leaves_of((0, 0, 4), (0, 4, 4), (4, 0, 4), (4, 4, 4), grid=(8, 8))
    second = uneven((8, 8), alpha=0.4)
    one = any_mode(mode, table, first, leaf_position=leaf_position)
    two = any_mode(mode, table, second, leaf_position=leaf_position)
    rest = second.boxes.tolist()
    shared = {i: rest.index(box) for i, box in enumerate(first.boxes.tolist()) if box in rest}
    assert 0 < len(shared) < 4
    for i, j in shared.items():
        torch.testing.assert_close(one[i], two[j], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("mode", [*TABLE_MODES, "mlp"])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("grid", [(7, 13), (16, 16), (1, 9)], ids=str)
def test_the_mean_position_averages_over_the_leafs_cells(grid, residual, mode):
    table, leaves = random_table(6), uneven(grid)
    cells = any_mode(mode, table, uniform(grid), mlp_residual=residual).reshape(*grid, -1)
    expected = [cells[row : row + size, col : col + size].mean((0, 1)) for row, col, size in leaves.boxes.tolist()]
    found = any_mode(mode, table, leaves, leaf_position="mean", mlp_residual=residual)
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_the_prior_alone_is_the_mlp_at_normalised_centres():
    leaves = uneven((7, 13))
    prior = small_prior(5)
    coordinates = -1 + 2 * leaves.centres / torch.tensor([6, 12])
    found = qlip.interpolate_positions(random_table(6), leaves, "mlp", mlp=prior, mlp_residual=False)
    torch.testing.assert_close(found, prior(coordinates.float()))


def test_the_prior_with_its_residual_adds_what_the_fit_missed():
    table, leaves, prior = random_table(6), uneven((7, 13)), small_prior(5)
    plain = qlip.interpolate_positions(table, leaves, "mlp", mlp=prior, mlp_residual=False)
    on_grid = qlip.interpolate_positions(table, uniform((6, 6)), "mlp", mlp=prior, mlp_residual=False)
    missed = qlip.interpolate_positions(table - on_grid, leaves, "bicubic")
    torch.testing.assert_close(qlip.interpolate_positions(table, leaves, "mlp", mlp=prior), plain + missed)


def test_the_prior_with_its_residual_gives_the_table_on_the_native_grid_whatever_the_fit():
    table = random_table(24)
    found = qlip.interpolate_positions(table, uniform((24, 24)), "mlp", mlp=small_prior(5))
    torch.testing.assert_close(found, table, atol=1e-6, rtol=0)


def test_a_grid_of_one_row_stands_in_the_middle():
    table = torch.arange(9.0)[:, None]  # entries of the middle row: 3, 4, 5
    found = qlip.interpolate_positions(table, uniform((1, 3)), "bilinear")[:, 0]
    assert found.tolist() == [3.0, 4.0, 5.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_works_in_float32_whatever_the_table(dtype):
    table, leaves = random_table(12).to(dtype), uneven((17, 40))
    found = qlip.interpolate_positions(table, leaves)
    torch.testing.assert_close(found, qlip.interpolate_positions(table.float(), leaves), rtol=0, atol=0)


def test_half_precision_regions_do_not_coarsen_positions():
    table, leaves = random_table(24), uneven((17, 40))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = qlip.interpolate_positions(table, leaves)
    torch.testing.assert_close(found.double(), sampled(table, leaves, "bicubic"), atol=2e-6, rtol=1e-5)


def test_a_table_that_is_not_square_is_refused():
    with pytest.raises(ValueError, match="577"):
        qlip.interpolate_positions(torch.zeros(577, 4), uniform((2, 2)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "nearest"}, "nearest.*bilinear.*bicubic.*mlp"),
        ({"leaf_position": "corner"}, "corner.*centre.*mean"),
        ({"mode": "mlp"}, "mlp"),
    ],
    ids=str,
)
def test_a_bad_option_is_named_with_what_is_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        qlip.interpolate_positions(random_table(3), uniform((2, 2)), **options)


# Places in the language model


@pytest.mark.parametrize("native", [1, 3, 16, 24])
@pytest.mark.parametrize("grid", [*GRIDS, (36, 36), (64, 48)], ids=str)
def test_raster_positions_follow_the_formula(grid, native):
    for leaves in (uniform(grid), uneven(grid), uneven(grid, alpha=math.inf)):
        exact = [float(raster_position(tuple(box), grid, native)) for box in leaves.boxes.tolist()]
        found = qlip.raster_positions(leaves, native)
        assert found.is_floating_point() and found.shape == (len(leaves),)
        torch.testing.assert_close(found.double(), torch.tensor(exact, dtype=torch.float64), atol=1e-4, rtol=0)


@pytest.mark.parametrize("native", [1, 7, 16, 24, 32])
def test_raster_positions_count_the_native_grid(native):
    found = qlip.raster_positions(uniform((native, native)), native)
    assert found.tolist() == list(range(native * native))


@settings(max_examples=60)
@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 32), st.floats(0, 1))
def test_raster_positions_stay_in_the_span_of_the_native_grid(rows, cols, native, alpha):
    found = qlip.raster_positions(uneven((rows, cols), alpha), native)
    assert found.min() >= 0 and found.max() <= native * native - 1


@pytest.mark.parametrize("leaf_position", ["centre", "native", "cell", "mean"])
@pytest.mark.parametrize("side", [1, 2, 24])
def test_the_native_grid_is_exact_however_high_the_prior_s_frequencies(side, leaf_position):
    torch.manual_seed(0)
    prior = CoordinateMLP(6, 64, 2, frequencies=authors_frequencies(48))
    with torch.no_grad():
        prior.layers[0].weight.mul_(50)
    table = random_table(side, 6)
    found = qlip.interpolate_positions(table, uniform((side, side)), "mlp", prior, leaf_position)
    torch.testing.assert_close(found, table, atol=1e-6, rtol=0)
