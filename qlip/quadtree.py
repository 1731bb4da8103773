"""The content-aware quadtree: image -> leaves (paper section 3.1).

Terms as in docs/METHOD.md: a cell is one P x P square of pixels, a block 2^k x 2^k cells, a leaf a block that is not
split; each leaf is one visual token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from qlip.config import Coarsest, Criterion, Geometry, Layout, QLIPConfig, check_count, check_threshold
from qlip.criteria import score_pyramid
from qlip.noise import estimate_noise
from qlip.roots import Roots, count_roots, find_max_leaf, find_native_cell, find_roots


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
        cells = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1])).view(-1, 2)
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
        return self.boxes[:, :2] + (self.boxes[:, 2:] - 1) / 2

    def token_map(self) -> Tensor:
        """Computes int64 (rows, cols), the index of the leaf that covers each cell; -1 if none does."""
        areas = self.sizes**2
        leaf = torch.repeat_interleave(torch.arange(len(self)), areas)
        place = torch.arange(len(leaf)) - (areas.cumsum(0) - areas)[leaf]  # running count inside the leaf
        row = self.boxes[leaf, 0] + place // self.sizes[leaf]
        col = self.boxes[leaf, 1] + place % self.sizes[leaf]
        tokens = torch.full(self.grid, -1)
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
    layout: Layout = QLIPConfig.layout,
    coarsest: Coarsest = QLIPConfig.coarsest,
    native_grid: int = 24,
    max_leaf: int | None = None,
    structure_size: int = QLIPConfig.structure_size,
    generator: torch.Generator | None = None,
    splittable: Tensor | None = None,
    geometry: Geometry = QLIPConfig.geometry,
    noise_floor: bool = QLIPConfig.noise_floor,
    noise: Tensor | None = None,
) -> Leaves:
    """Cuts an image by the quadtree of its detail (paper section 3.1), by default as `QLIPConfig` does for CLIP-L/336.

    Waits for a GPU once, at the end.

    Args:
        image: float (C, H, W), normalised pixels; H and W multiples of `patch_size`.
        patch_size: P, pixels per side of a cell, at least 2.
        alpha: a block larger than a cell splits iff its score >= alpha and its parent split. 0 is the uniform grid.
        criterion: what scores a block, see `qlip.criteria`.
        max_tokens: budget; blocks split in order of falling score (ties: larger first, then raster) while it lasts.
        layout: "aligned" tiles the roots from the top-left corner and splits those beyond the grid;
            "centered" centres whole roots, every cell outside them is a leaf.
        coarsest: "native" bounds leaves by a cell of the tower's native grid, as far as the budget allows; "any" not.
        native_grid: n, cells per side of the images that the tower was trained on.
        max_leaf: bound on the side of a leaf in cells, a power of two, instead of that of `coarsest`.
        structure_size: window of criterion "structure" in sampled pixels, odd.
        generator: source of criterion "random"; by default one with seed 0.
        splittable: bool, shaped like the roots (see `choose_splits`): only these may split; by default all.
        geometry: "native" takes the native cells of an image that was resized to a multiple of them as roots.
        noise_floor: lower the scores of "structure" by the image's noise.
        noise: float (C,), its standard deviation, if it is known; by default `estimate_noise` of the image, too little
            where the image was enlarged.

    Raises:
        TypeError: the image is not floating point.
        ValueError: a size, threshold or name is out of range, or the coarsest tree has more leaves than `max_tokens`.
    """
    grid = find_grid(image, patch_size)
    image = image.float()  # sums over a block overflow half precision
    check_threshold(alpha)
    if max_tokens is not None:
        check_count("max_tokens", max_tokens)
    if max_leaf is None:
        max_leaf = find_max_leaf(grid, native_grid, coarsest, layout, max_tokens, geometry)
    native_cell = find_native_cell(grid, native_grid, geometry)
    roots = find_roots(grid, layout, max_leaf, native_cell)
    fewest = count_roots(grid, layout, max_leaf, native_cell)
    if max_tokens is not None and fewest > max_tokens:
        raise ValueError(
            f"max_tokens is {max_tokens}, but the coarsest tree of a grid of {grid[0]} x {grid[1]} cells has"
            f" {fewest} leaves; allow more tokens or make the image smaller"
        )
    region = image[
        :,
        roots.top * patch_size : (roots.top + roots.rows) * patch_size,
        roots.left * patch_size : (roots.left + roots.cols) * patch_size,
    ]
    if not noise_floor or criterion != "structure":
        noise = None
    elif noise is None:
        noise = estimate_noise(image)
    scores = score_pyramid(
        region,
        patch_size,
        roots.level,
        criterion,
        structure_size=structure_size,
        image_pixels=image.shape[1] * image.shape[2],
        generator=generator,
        noise=noise,
    )
    splits_left = None if max_tokens is None else (max_tokens - fewest) // 3
    splits = choose_splits(scores, (roots.rows, roots.cols), alpha, splits_left, splittable)
    return read_leaves(splits, roots, grid)


def partition_as(
    settings: QLIPConfig, image: Tensor, patch_size: int, native_grid: int, noise: Tensor | None = None
) -> Leaves:
    """Cuts an image (C, H, W) under the settings, for a tower trained on `native_grid` cells a side."""
    return partition(
        image,
        patch_size,
        alpha=settings.alpha,
        criterion=settings.criterion,
        max_tokens=settings.max_tokens,
        layout=settings.layout,
        coarsest=settings.coarsest,
        native_grid=native_grid,
        structure_size=settings.structure_size,
        generator=torch.Generator().manual_seed(settings.seed),
        geometry=settings.geometry,
        noise_floor=settings.noise_floor,
        noise=noise,
    )


def count_sizes(leaves: Leaves, native_grid: int, geometry: Geometry) -> Tensor:
    """Counts the side of each leaf, float32 (N,), in cells; with geometry "native" in native cells."""
    return leaves.sizes.float() / find_native_cell(leaves.grid, native_grid, geometry)


def choose_splits(
    scores: list[Tensor], extent: tuple[int, int], alpha: float, most: int | None, splittable: Tensor | None = None
) -> list[Tensor]:
    """Chooses the blocks that split: bool, shaped like `scores`, for levels 1 and up.

    Blocks that extend beyond `extent` (rows, cols) always split; of the others at most `most`, highest score first.
    With `splittable`, bool and shaped like the top level's scores, blocks in other roots stay whole. The scores of T
    tiles of one size may be stacked, (T, rows, cols) each: `extent` is a tile's, `most` is of all together.
    """
    if splittable is not None and (splittable.shape != scores[-1].shape or splittable.dtype != torch.bool):
        raise ValueError(
            f"splittable is {splittable.dtype} {tuple(splittable.shape)}; it must be bool, one for each of the"
            f" {tuple(scores[-1].shape)} roots"
        )
    forced = [_sticks_out(scores[k], k, extent) for k in range(len(scores))]
    effective: list[Tensor] = []  # from the top level down
    for k in range(len(scores) - 1, 0, -1):
        score = scores[k]
        if effective:
            score = torch.minimum(score, _upsample(effective[-1], 2, score.shape))
        if splittable is not None:
            may = _upsample(splittable.to(score.device), 2 ** (len(scores) - 1 - k), score.shape)
            score = score.masked_fill(~may, -torch.inf)
        effective.append(score.masked_fill(forced[k], torch.inf))
    wanted = [score >= alpha for score in effective]
    if most is not None and effective:
        # Listed by level from the top, each in raster order: a stable sort then breaks ties as promised, and a parent,
        # whose effective score is no smaller than its child's, always comes first.
        forced_flat = torch.cat([forced[k].flatten() for k in range(len(scores) - 1, 0, -1)])
        ranking = torch.cat([score.flatten() for score in effective]).masked_fill(forced_flat, -torch.inf)
        best = ranking.sort(descending=True, stable=True).indices[:most]
        chosen = forced_flat.index_fill(0, best, True).split([score.numel() for score in effective])
        wanted = [want & pick.view_as(want) for want, pick in zip(wanted, chosen, strict=True)]
    return wanted[::-1]


def read_leaves(splits: list[Tensor], roots: Roots, grid: tuple[int, int]) -> Leaves:
    """Turns nested split decisions (levels 1 and up) into leaves."""
    extent = (roots.rows, roots.cols)
    level = torch.zeros(extent, dtype=torch.int64, device=splits[0].device if splits else None)
    for k, split in enumerate(splits, start=1):
        level += ~_upsample(split, 2**k, extent)  # splits are nested: unsplit blocks over a cell count up to its level
    sizes = torch.ones(grid, dtype=torch.int64)
    sizes[roots.top : roots.top + roots.rows, roots.left : roots.left + roots.cols] = 2 ** level.cpu()
    row = torch.arange(grid[0])[:, None] - roots.top
    col = torch.arange(grid[1])[None, :] - roots.left
    corners = ((row % sizes == 0) & (col % sizes == 0)).nonzero()
    return Leaves(torch.cat([corners, sizes[corners[:, :1], corners[:, 1:]]], dim=1), grid)


def find_grid(image: Tensor, patch_size: int) -> tuple[int, int]:
    """Computes (rows, cols) of an image (C, H, W) in cells.

    Raises:
        TypeError: the image is not floating point.
        ValueError: it has not three dimensions, is empty, or its sides are not multiples of the patch size.
    """
    check_count("patch_size", patch_size)
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


def _sticks_out(score: Tensor, level: int, extent: tuple[int, int]) -> Tensor:
    """Finds the blocks that are not wholly inside `extent`: bool, shaped like `score`."""
    ends = [torch.arange(1, n + 1, device=score.device) << level for n in score.shape[-2:]]
    return ((ends[0] > extent[0])[:, None] | (ends[1] > extent[1])[None, :]).expand(score.shape)


def _upsample(grid: Tensor, factor: int, shape: tuple[int, ...]) -> Tensor:
    """Repeats every entry factor x factor times and crops to `shape`."""
    return grid.repeat_interleave(factor, -2).repeat_interleave(factor, -1)[..., : shape[-2], : shape[-1]]
