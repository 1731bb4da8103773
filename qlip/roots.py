"""The roots (coarsest blocks) of a quadtree: position, size and number (paper section 3.1)."""

from __future__ import annotations

from typing import NamedTuple

from qlip.config import Coarsest, Geometry, Layout, QLIPConfig, check_choice, check_count


class Roots(NamedTuple):
    """The region of the coarsest blocks."""

    level: int  # blocks of 2^level cells
    top: int  # first row and column of the region, in cells
    left: int
    rows: int  # extent of the region, in cells
    cols: int


def find_roots(
    grid: tuple[int, int], layout: Layout = QLIPConfig.layout, max_leaf: int | None = None, native_cell: int = 1
) -> Roots:
    """Finds the roots, of side 2^(floor(log2(min(rows, cols))) - 1), at least `native_cell` and at most `max_leaf`.

    None is larger than the grid.
    """
    check_choice("layout", layout, Layout)
    rows, cols = grid
    largest = min(rows, cols).bit_length() - 1
    level = min(largest, max(largest - 1, native_cell.bit_length() - 1))
    if max_leaf is not None:
        check_count("max_leaf", max_leaf)
        if max_leaf & (max_leaf - 1):
            raise ValueError(f"max_leaf is {max_leaf}; it must be a power of two")
        level = min(level, max_leaf.bit_length() - 1)
    if layout == "aligned":
        return Roots(level, 0, 0, rows, cols)
    side = 2**level
    return Roots(level, rows % side // 2, cols % side // 2, rows - rows % side, cols - cols % side)


def count_roots(roots: Roots, grid: tuple[int, int]) -> int:
    """Counts the leaves of the coarsest tree, the minimum of any budget."""
    whole = [(roots.rows >> k) * (roots.cols >> k) for k in range(roots.level + 1)]  # blocks inside the region
    inside = whole[-1] + sum(whole[k] - 4 * whole[k + 1] for k in range(roots.level))
    return inside + grid[0] * grid[1] - roots.rows * roots.cols


def find_native_cell(grid: tuple[int, int], native_grid: int, geometry: Geometry) -> int:
    """Finds the side, in cells, of the square that one cell of the tower's native grid became.

    With geometry "native" the largest power of two that the longer side holds `native_grid` times; with "grid", where
    cells keep their size in pixels, 1.
    """
    check_choice("geometry", geometry, Geometry)
    return 1 if geometry == "grid" else 1 << max((max(grid) // native_grid).bit_length() - 1, 0)


def native_max_leaf(grid: tuple[int, int], native_grid: int, geometry: Geometry) -> int:
    """Finds the side, in cells, of the largest leaf within one native cell; with geometry "native" it is the cell.

    With "grid" native cells are those of an n x n grid laid over the image.
    """
    if geometry == "native":
        return find_native_cell(grid, native_grid, geometry)
    return 1 << max((min(grid) // native_grid).bit_length() - 1, 0)


def allowed_leaf(settings: QLIPConfig, grid: tuple[int, int], native_grid: int) -> int | None:
    """Finds the bound on a leaf's side that the settings set for a grid; None: no bound."""
    return find_max_leaf(grid, native_grid, settings.coarsest, settings.layout, settings.max_tokens, settings.geometry)


def roots_for(settings: QLIPConfig, grid: tuple[int, int], native_grid: int) -> Roots:
    """Finds the roots that the settings set for a grid."""
    native_cell = find_native_cell(grid, native_grid, settings.geometry)
    return find_roots(grid, settings.layout, allowed_leaf(settings, grid, native_grid), native_cell)


def fewest_leaves(settings: QLIPConfig, grid: tuple[int, int], native_grid: int) -> int:
    """Counts the leaves of the coarsest tree that the settings allow for a grid."""
    return count_roots(roots_for(settings, grid, native_grid), grid)


def find_max_leaf(
    grid: tuple[int, int],
    native_grid: int,
    coarsest: Coarsest,
    layout: Layout,
    max_tokens: int | None,
    geometry: Geometry = "grid",
) -> int | None:
    """Finds the bound on a leaf's side, in cells, that `coarsest` sets for a grid; None: no bound.

    A budget below the number of native cells lifts the bound as far as it must: coarser leaves rather than a smaller
    image.
    """
    check_choice("coarsest", coarsest, Coarsest)
    if coarsest == "any":
        return None
    check_count("native_grid", native_grid)
    cell = find_native_cell(grid, native_grid, geometry)
    side = native_max_leaf(grid, native_grid, geometry)
    largest = 1 << find_roots(grid, layout, None, cell).level
    if max_tokens is not None:
        while side < largest and count_roots(find_roots(grid, layout, side, cell), grid) > max_tokens:
            side *= 2
    return side
