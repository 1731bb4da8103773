"""Positions of leaves: embeddings from the tower's table (paper section 3.2), and positions on the native raster."""

from __future__ import annotations

import torch
from torch import Tensor

from qlip.config import Interpolation, LeafPosition, Placement, QLIPConfig, check_choice
from qlip.mlp import CoordinateMLP
from qlip.quadtree import Leaves

BICUBIC_A = -0.75  # the kernel of torch's and most libraries' bicubic interpolation


def interpolate_positions(
    table: Tensor,
    leaves: Leaves,
    mode: Interpolation = QLIPConfig.interpolation,
    mlp: CoordinateMLP | None = None,
    leaf_position: LeafPosition = "centre",
    mlp_residual: bool = QLIPConfig.mlp_residual,
    placement: Placement = QLIPConfig.placement,
) -> Tensor:
    """Interpolates position embeddings of leaves from a pretrained n x n table, by default at the paper's places.

    Args:
        table: float (n * n, D), the pretrained patch positions without [CLS], row by row.
        leaves: N leaves.
        mode: "bilinear", "bicubic" (borders clamped) or "mlp", the trained prior.
        mlp: the prior, for mode "mlp".
        leaf_position: with the table laid corner to corner over the grid, position of the leaf's centre, of its cell
            (row + size // 2, col + size // 2), or the mean over its cells; "native" is that of the centre with entry
            (i, j) of the table at the centre of cell (i, j) of an n x n raster, so that a leaf which is one native cell
            lies exactly on its entry in an image of any size.
        mlp_residual: with "mlp", add (table - prior on the native grid), interpolated bicubically, so that the native
            grid is exact however good the fit. False is the paper's form.
        placement: with "native", where the raster lies: over the "whole" image, or over the square around it that it
            would be "padded" to.

    Returns:
        float32 (N, D) on the table's device. On the native uniform grid exactly the table; with the prior and its
        residual up to rounding.

    Raises:
        ValueError: the table is not square, or a name is unknown, or the prior is missing.
    """
    check_choice("mode", mode, Interpolation)
    check_choice("leaf_position", leaf_position, LeafPosition)
    check_choice("placement", placement, Placement)
    side = native_side(table)
    with torch.autocast(table.device.type, enabled=False):  # coordinates need float32
        table = table.float()
        if mode != "mlp":
            return _table_weights(leaves, side, mode, leaf_position, placement).to(table.device) @ table
        if mlp is None:
            raise ValueError("mode 'mlp' needs the prior: mlp is None")
        positions = _prior_positions(mlp, leaves, side, leaf_position, placement, table.device)
        if mlp_residual:
            native = Leaves.uniform((side, side))
            # Same formula as for the leaves: at the authors' high frequencies another rounding would be visible.
            own: LeafPosition = "native" if leaf_position == "native" else "centre"
            residual = table - _prior_positions(mlp, native, side, own, "whole", table.device)
            weights = _table_weights(leaves, side, "bicubic", leaf_position, placement)
            positions = positions + weights.to(table.device) @ residual
        return positions


def raster_positions(leaves: Leaves, native_grid: int, placement: Placement = QLIPConfig.placement) -> Tensor:
    """Computes the position of each leaf's centre on the native raster, for the position ids of a language model.

    On an n x n raster over the image, rows are whole numbers and positions within a row fractional: n * i + j,
    i = min(floor((row + size/2) / rows * n), n - 1), j = clamp((col + size/2) / cols * n - 1/2, 0, n - 1).

    Args:
        leaves: N leaves.
        native_grid: n, cells per side of the grid that the tower was trained on.
        placement: whether the raster lies over the "whole" image, or over the square around it that it would be
            "padded" to: then rows and cols above are the longer side, and row and col count from the square's corner.

    Returns:
        float32 (N,), from 0 to n * n - 1; on the native uniform grid exactly 0, 1, 2, ...
    """
    row, col, size = leaves.boxes.unbind(1)
    (rows, above), (cols, before) = (_extent(leaves.grid, axis, placement) for axis in (0, 1))
    i = ((2 * row + size + above) * native_grid // (2 * rows)).clamp(max=native_grid - 1)
    j = ((2 * col + size + before) * native_grid).double() / (2 * cols) - 0.5
    return (native_grid * i + j.clamp(0, native_grid - 1)).float()


def native_side(table: Tensor) -> int:
    """Computes n of a table (n * n, D)."""
    side = round(table.shape[0] ** 0.5)
    if table.ndim != 2 or side * side != table.shape[0] or side == 0:
        raise ValueError(f"the position table has shape {tuple(table.shape)}; it must be (n * n, D), without [CLS]")
    return side


def _extent(grid: tuple[int, int], axis: int, placement: Placement) -> tuple[int, int]:
    """Finds the side of the native raster along an axis, in cells, and twice the cells of it before the image."""
    side = grid[axis] if placement == "whole" else max(grid)
    return side, side - grid[axis]


def _table_weights(
    leaves: Leaves, side: int, mode: Interpolation, leaf_position: LeafPosition, placement: Placement
) -> Tensor:
    """Computes float32 (N, n * n), the weight of every table entry in every leaf's position; rows sum to 1."""
    by_row, by_col = (_axis_weights(leaves, axis, side, mode, leaf_position, placement) for axis in (0, 1))
    return (by_row[:, :, None] * by_col[:, None, :]).flatten(1).float()


def _axis_weights(
    leaves: Leaves, axis: int, side: int, mode: Interpolation, leaf_position: LeafPosition, placement: Placement
) -> Tensor:
    """Computes float64 (N, n), the same along one axis: exactly one-hot for a leaf on a point of the table."""
    if leaf_position == "native":
        return _point_weights(_native_points(leaves, axis, side, placement), side, mode)
    length, starts, sizes = leaves.grid[axis], leaves.boxes[:, axis], leaves.sizes
    if leaf_position != "mean":
        return _point_weights(_corner_points(_places(leaves, leaf_position)[:, axis], length, side), side, mode)
    cells = torch.arange(length, device="cpu")
    inside = (cells >= starts[:, None]) & (cells < (starts + sizes)[:, None])
    return (inside / sizes[:, None].double()) @ _point_weights(_corner_points(cells.double(), length, side), side, mode)


def _native_points(leaves: Leaves, axis: int, side: int, placement: Placement) -> Tensor:
    """Computes float64 (N,), the leaves' centres on the table laid by cell centres, from 0 to n - 1."""
    extent, before = _extent(leaves.grid, axis, placement)
    doubled = 2 * leaves.boxes[:, axis] + leaves.sizes + before  # whole numbers, so that native cells are exact
    return ((doubled * side).double() / (2 * extent) - 0.5).clamp(0, side - 1)


def _corner_points(places: Tensor, length: int, side: int) -> Tensor:
    """Maps places in cells, 0 to length - 1, to the table laid corner to corner, 0 to n - 1: float64 (N,)."""
    return places * (side - 1) / (length - 1) if length > 1 else torch.full_like(places, (side - 1) / 2)


def _point_weights(points: Tensor, side: int, mode: Interpolation) -> Tensor:
    """Computes float64 (N, n) for points on the table, 0 to n - 1."""
    left = points.floor()
    distance = points - left
    if mode == "bilinear":
        offsets, weights = [0, 1], [1 - distance, distance]
    else:
        offsets = [-1, 0, 1, 2]
        weights = [_cubic_far(1 + distance), _cubic_near(distance), _cubic_near(1 - distance), _cubic_far(2 - distance)]
    index = torch.stack([(left.long() + offset).clamp(0, side - 1) for offset in offsets], dim=1)
    return points.new_zeros(len(points), side).scatter_add_(1, index, torch.stack(weights, dim=1))


def _cubic_near(x: Tensor) -> Tensor:
    """Evaluates Keys' cubic kernel for distances up to 1."""
    return ((BICUBIC_A + 2) * x - (BICUBIC_A + 3)) * x * x + 1


def _cubic_far(x: Tensor) -> Tensor:
    """Evaluates Keys' cubic kernel for distances from 1 to 2."""
    return ((BICUBIC_A * x - 5 * BICUBIC_A) * x + 8 * BICUBIC_A) * x - 4 * BICUBIC_A


def _places(leaves: Leaves, leaf_position: LeafPosition) -> Tensor:
    """Computes float64 (N, 2): (row, col), in cells, of a leaf's position."""
    return (leaves.centres if leaf_position == "centre" else leaves.boxes[:, :2] + leaves.boxes[:, 2:] // 2).double()


def _prior_positions(
    mlp: CoordinateMLP,
    leaves: Leaves,
    side: int,
    leaf_position: LeafPosition,
    placement: Placement,
    device: torch.device,
) -> Tensor:
    """Evaluates the prior at the leaves' coordinates: float32 (N, D).

    u = -1 + 2 c / (extent - 1) in cells, 0 for extent 1; on the native raster u = -1 + 2 point / (n - 1).
    """
    if leaf_position == "native":
        points = torch.stack([_native_points(leaves, axis, side, placement) for axis in (0, 1)], dim=1)
        return mlp((2 * points / max(side - 1, 1) - 1).float().to(device)).float()
    places = _places(Leaves.uniform(leaves.grid) if leaf_position == "mean" else leaves, leaf_position).float()
    extent = torch.tensor(leaves.grid, device="cpu") - 1
    coordinates = torch.where(extent > 0, 2 * places / extent.clamp(min=1) - 1, 0.0)
    positions = mlp(coordinates.to(device)).float()
    if leaf_position != "mean":
        return positions
    tokens = leaves.token_map().flatten().to(device)
    sums = positions.new_zeros(len(leaves), positions.shape[1]).index_add_(0, tokens, positions)
    return sums / (leaves.sizes**2).to(device)[:, None]
