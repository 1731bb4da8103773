"""The content-aware quadtree: image -> leaves (paper section 3.1).

Terms as in docs/METHOD.md: a cell is one P x P square of pixels, a block 2^k x 2^k cells, a leaf a block that is not
split; each leaf is one visual token.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from qlip.config import (
    Coarsest,
    Criterion,
    Geometry,
    Layout,
    QLIPConfig,
    SplitOrder,
    check_choice,
    check_count,
    check_threshold,
)
from qlip.roots import Roots, allowed_leaf, count_roots, find_max_leaf, find_native_cell, find_roots
from qlip.scores.criteria import WINDOWED, score_pyramid
from qlip.scores.noise import estimate_noise
from qlip.splits import choose_splits, upsample


@dataclass(frozen=True, eq=False)
class Leaves:
    """The leaves of one image's quadtree, in raster order of their top-left cells. Always on the CPU."""

    boxes: Tensor
    """int64 (N, 3): row, col, size in cells."""

    grid: tuple[int, int]
    """(rows, cols) of the image in cells."""

    def __post_init__(self) -> None:
        if self.boxes.dtype != torch.int64 or self.boxes.ndim != 2 or self.boxes.shape[1] != 3:
            raise ValueError(f"boxes are {self.boxes.dtype} {tuple(self.boxes.shape)}; they must be int64 (N, 3)")

    @classmethod
    def uniform(cls, grid: tuple[int, int]) -> Leaves:
        """Makes the uniform grid: one leaf per cell."""
        cells = torch.cartesian_prod(*(torch.arange(side, device="cpu") for side in grid)).view(-1, 2)
        return cls(F.pad(cells, (0, 1), value=1), grid)

    def __len__(self) -> int:
        return self.boxes.shape[0]

    @property
    def sizes(self) -> Tensor:
        """int64 (N,): side of each leaf in cells."""
        return self.boxes[:, 2]

    @property
    def centres(self) -> Tensor:
        """float32 (N, 2): (row, col) of each leaf's centre in cell-index units; a single cell's is its own index."""
        return self.boxes[:, :2] + (self.boxes[:, 2:] - 1).float() / 2

    @property
    def aligned(self) -> Tensor:
        """bool (N,): whether each starts at a multiple of its side, as all do in a tree of layout "aligned"."""
        return (self.boxes[:, :2] % self.boxes[:, 2:] == 0).all(1)

    def token_map(self) -> Tensor:
        """Computes int64 (rows, cols), the index of the leaf that covers each cell; -1 if none does."""
        areas = self.sizes**2
        leaf = torch.repeat_interleave(torch.arange(len(self), device="cpu"), areas)
        place = torch.arange(len(leaf), device="cpu") - (areas.cumsum(0) - areas)[leaf]  # running count inside the leaf
        row = self.boxes[leaf, 0] + place // self.sizes[leaf]
        col = self.boxes[leaf, 1] + place % self.sizes[leaf]
        tokens = torch.full(self.grid, -1, device="cpu")
        tokens[row, col] = leaf
        return tokens


@torch.no_grad()
def partition(
    image: Tensor,
    patch_size: int = 14,
    *,
    alpha: float = QLIPConfig.alpha,
    criterion: Criterion = QLIPConfig.criterion,
    max_tokens: int | None = QLIPConfig.max_tokens,
    split_order: SplitOrder = QLIPConfig.split_order,
    layout: Layout = QLIPConfig.layout,
    coarsest: Coarsest = QLIPConfig.coarsest,
    native_grid: int = 24,
    max_leaf: int | None = None,
    structure_size: int = QLIPConfig.structure_size,
    generator: torch.Generator | None = None,
    geometry: Geometry = "grid",
    noise_floor: bool = False,
    noise: Tensor | None = None,
) -> Leaves:
    """Cuts an image by the quadtree of its detail (paper section 3.1), by default with `QLIPConfig`'s rule for CLIP-L.

    It takes the pixels as they are, so geometry and noise floor, for which an image processor needs the original, are
    off by default. Waits for a GPU once, at the end; with criterion "objects" it copies the image to the CPU.

    Args:
        image: float (C, H, W), normalised pixels; H and W multiples of `patch_size`.
        patch_size: P, pixels per side of a cell, at least 2.
        alpha: a block larger than a cell splits iff its score >= alpha and its parent split. 0 is the uniform grid.
        criterion: what scores a block, see `qlip.scores.criteria`.
        max_tokens: budget; blocks split in `split_order` while it lasts.
        split_order: by falling "score", or score times "side"; ties: larger first, then raster.
        layout: "aligned" tiles the roots from the top-left corner and splits those beyond the grid;
            "centered" centres whole roots, every cell outside them is a leaf.
        coarsest: "native" limits leaves to a cell of the tower's native grid, if the budget allows; "any" does not.
        native_grid: n, cells per side of the images that the tower was trained on.
        max_leaf: bound on the side of a leaf in cells, a power of two, instead of that of `coarsest`.
        structure_size: window of criteria "structure" and "objects" in sampled pixels, odd.
        generator: source of criterion "random"; by default one with seed 0.
        geometry: "native" takes the native cells of an image that was resized to a multiple of them as roots.
        noise_floor: lower the scores of "structure" and "objects" by the image's noise.
        noise: float (C,), its standard deviation, if it is known; by default `estimate_noise(image)`, which is
            too low for an enlarged image.

    Raises:
        TypeError: the image is not floating point.
        ValueError: a size, threshold or name is out of range, or the coarsest tree has more leaves than `max_tokens`.
    """
    grid = find_grid(image, patch_size)
    image = image.float()  # sums over a block overflow half precision
    check_threshold(alpha)
    check_choice("split_order", split_order, SplitOrder)
    if max_tokens is not None:
        check_count("max_tokens", max_tokens)
    if max_leaf is None:
        max_leaf = find_max_leaf(grid, native_grid, coarsest, layout, max_tokens, geometry)
    roots = find_roots(grid, layout, max_leaf, find_native_cell(grid, native_grid, geometry))
    fewest, trees = count_roots(roots, grid), f"tree of a grid of {grid[0]} x {grid[1]} cells has"
    splits_left = spare_splits(max_tokens, fewest, trees, "allow more tokens or make the image smaller")
    scores = score_pyramid(
        _crop(image, roots, patch_size),
        patch_size,
        roots.level,
        criterion,
        structure_size=structure_size,
        image_pixels=image.shape[1] * image.shape[2],
        generator=generator,
        noise=find_noise(criterion, noise_floor, image, noise),
    )
    splits = choose_splits(scores, (roots.rows, roots.cols), alpha, splits_left, split_order)
    return read_leaves(splits, roots, grid)


def partition_as(
    settings: QLIPConfig,
    image: Tensor,
    patch_size: int,
    native_grid: int,
    noise: Tensor | None = None,
    bounded: bool = True,
) -> Leaves:
    """Cuts an image (C, H, W) under the settings, for a tower trained on `native_grid` cells a side.

    With `bounded=False` the budget limits only the roots; below them every block splits that alpha asks for.
    """
    return partition(
        image,
        patch_size,
        alpha=settings.alpha,
        criterion=settings.criterion,
        max_tokens=settings.max_tokens if bounded else None,
        split_order=settings.split_order,
        layout=settings.layout,
        coarsest=settings.coarsest,
        max_leaf=allowed_leaf(settings, find_grid(image, patch_size), native_grid),
        native_grid=native_grid,
        structure_size=settings.structure_size,
        generator=torch.Generator("cpu").manual_seed(settings.seed),
        geometry=settings.geometry,
        noise_floor=settings.noise_floor,
        noise=noise,
    )


def measure_sizes(leaves: Leaves, native_grid: int, geometry: Geometry) -> Tensor:
    """Measures the side of each leaf, float32 (N,), in cells; with geometry "native" in native cells."""
    return leaves.sizes.float() / find_native_cell(leaves.grid, native_grid, geometry)


def spare_splits(max_tokens: int | None, fewest: int, trees: str, remedy: str) -> int | None:
    """Counts the splits that a budget allows beyond the `fewest` leaves of the coarsest trees; None: no bound.

    Raises:
        ValueError: the budget is smaller than that; `trees` and `remedy` are words of the message.
    """
    if max_tokens is None:
        return None
    if fewest > max_tokens:
        raise ValueError(f"max_tokens is {max_tokens}, but the coarsest {trees} {fewest} leaves; {remedy}")
    return (max_tokens - fewest) // 3


def find_noise(criterion: Criterion, noise_floor: bool, image: Tensor, noise: Tensor | None = None) -> Tensor | None:
    """Finds the noise level that lowers scores, float (C,): `noise` if given, else an estimate; None if unused.

    Raises:
        ValueError: what is known of it has another shape.
    """
    if not noise_floor or criterion not in WINDOWED:
        return None
    if noise is not None and noise.shape != image.shape[:1]:
        raise ValueError(f"noise has the shape {tuple(noise.shape)}; an image of {len(image)} channels has one of each")
    return estimate_noise(image) if noise is None else noise


def read_leaves(splits: list[np.ndarray], roots: Roots, grid: tuple[int, int]) -> Leaves:
    """Turns nested split decisions (levels 1 and up) into leaves."""
    extent = (roots.rows, roots.cols)
    sizes = np.ones(grid, np.int64)
    region = sizes[roots.top : roots.top + roots.rows, roots.left : roots.left + roots.cols]
    for k, split in enumerate(splits, start=1):
        region <<= ~upsample(split, 2**k, extent)  # splits are nested: every unsplit block over a cell doubles it
    row = np.arange(grid[0])[:, None] - roots.top
    col = np.arange(grid[1]) - roots.left
    # A leaf of side s begins where row and column are multiples of s: (4 | 8) & (4 - 1) is 0, (4 | 6) & (4 - 1) is 2.
    corners = np.nonzero(((row | col) & (sizes - 1)) == 0)
    return Leaves(torch.from_numpy(np.stack([*corners, sizes[corners]], axis=1)), grid)


def find_grid(image: Tensor, patch_size: int) -> tuple[int, int]:
    """Computes (rows, cols) of an image (C, H, W) in cells.

    Raises:
        TypeError: the image is not floating point.
        ValueError: it has not three dimensions, is empty, or its sides are not multiples of the patch size.
    """
    check_count("patch_size", patch_size)
    if not isinstance(image, Tensor):
        raise TypeError(f"the image is a {type(image).__name__}; it must be a tensor, such as torch.from_numpy makes")
    if not image.is_floating_point():
        raise TypeError(f"the image is {image.dtype}; it must be floating point, normalised")
    if image.ndim != 3:
        raise ValueError(f"the image has shape {tuple(image.shape)}; it must be (channels, height, width)")
    height, width = image.shape[1:]
    if patch_size < 2 or not image.numel() or height % patch_size or width % patch_size:
        raise ValueError(
            f"the image is {height} x {width} pixels, the patch size {patch_size}: height and width must be"
            " positive multiples of the patch size, and that at least 2"
        )
    return height // patch_size, width // patch_size


def _crop(image: Tensor, roots: Roots, patch_size: int) -> Tensor:
    """Views the pixels of the roots' region."""
    top, left, rows, cols = (patch_size * cells for cells in roots[1:])
    return image[:, top : top + rows, left : left + cols]
