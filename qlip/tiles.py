"""Quadtrees for models that were trained on tiles (LLaVA-1.6): the leaves of tiles, and their places on a raster.

Such a model was shown each image as a base, n x n tokens of the whole image, and then a raster of finer ones, row by
row, each row closed by a newline. Leaves take the positions that their centres have among these. Pure functions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from qlip.config import QLIPConfig
from qlip.language_positions import CPU, ImageSpan, weigh
from qlip.patches import CutImage, extract_patches, native_cut
from qlip.quadtree import Leaves, find_noise, read_leaves, spare_splits
from qlip.roots import count_roots, find_roots
from qlip.scores.criteria import score_pyramid
from qlip.splits import choose_splits

Box = tuple[int, int, int, int]
"""(top, left, height, width)."""


@dataclass(frozen=True)
class Raster:
    """The tokens that a model was trained to see of one image."""

    base: int
    """Tokens of the whole image, n * n, before the raster."""
    rows: int
    cols: int
    """Tokens of a row, its newline not counted."""

    @property
    def pitch(self) -> int:
        """Positions from one row to the next."""
        return self.cols + 1

    @property
    def length(self) -> int:
        """All tokens, and so the positions that the image takes."""
        return self.base + self.rows * self.pitch


@dataclass(frozen=True, eq=False)
class TokenOrder:
    """The sequence of one image's tokens in the language model."""

    order: Tensor
    """int64 (K,): which of the tower's N tokens comes next; N is a newline. Tokens may be left out."""
    span: ImageSpan
    """Positions and weights of the K tokens."""
    leaves: Leaves
    """The leaves of `order`, on the raster's part of the image."""

    def gather(self, features: Tensor, newline: Tensor | None) -> Tensor:
        """Puts an image's features (N, D) and newlines (D,) in order: (K, D).

        Raises:
            ValueError: there is no newline.
        """
        if newline is None:
            raise ValueError("the model has no image_newline, which closes the rows of its tokens")
        return torch.cat([features, newline[None].to(features)])[self.order.to(features.device)]

    def restore(self, values: Tensor) -> Tensor:
        """Puts values (K, ...) of tokens in the tower's order, without those of newlines: (N, ...).

        Only for an order that leaves no token out.
        """
        newline = self.order.max()
        own = (self.order != newline).to(values.device)
        restored = values.new_empty(int(newline), *values.shape[1:])
        restored[self.order.to(values.device)[own]] = values[own]
        return restored


def order_tokens(
    settings: QLIPConfig, leaves: Leaves, raster: Raster, base: int = 0, which: Tensor | None = None
) -> TokenOrder:
    """Orders the tokens of an image as its raster would: its base, then rows of leaves, each closed by a newline.

    A leaf whose centre lies at the shares (v, u) of the height and width has row i = floor(v * rows) and column
    j = u * cols - 1/2, kept inside the raster, and position base + pitch * i + j: a leaf that is a token of the raster
    has that token's position. A row without leaves has no newline.

    Args:
        settings: `llm_positions`, `llm_size_bias` and `llm_weight` decide. A leaf weighs by its side in tokens of the
            raster; llm_weight "native" makes all weigh together as the raster and its base.
        leaves: N leaves on the part of the image that the raster covers; they may stick out of it.
        raster: what the model was trained to see of the image.
        base: the tower's tokens before the leaves', n * n or 0.
        which: bool (M,), the tower's leaves that `leaves` are, if they are not all.
    """
    (rows, cols), (row, col, size) = leaves.grid, leaves.boxes.unbind(1)
    i = ((2 * row + size) * raster.rows // (2 * rows)).clamp(0, raster.rows - 1)
    j = ((2 * col + size) * raster.cols).double() / (2 * cols) - 0.5
    used = i.unique()
    places = torch.cat([raster.pitch * i + j.clamp(0, raster.cols - 1), (raster.pitch * used + raster.cols).double()])
    kept = torch.arange(len(leaves), device="cpu") if which is None else which.nonzero()[:, 0]
    newline = len(leaves) if which is None else len(which)
    numbers = torch.cat([kept, torch.full_like(used, newline)])
    sides = torch.cat([size.float() * (raster.rows * raster.cols / (rows * cols)) ** 0.5, torch.ones(len(used), **CPU)])

    sequence = places.argsort(stable=True)
    order = torch.cat([torch.arange(base, device="cpu"), base + numbers[sequence]])
    weights = weigh(settings, torch.cat([torch.ones(base, **CPU), sides[sequence]]), raster.length)
    if settings.llm_positions == "sequential":
        span = ImageSpan(len(order), None, len(order), weights)
    else:
        positions = torch.cat([torch.arange(base, dtype=torch.float64, device="cpu"), raster.base + places[sequence]])
        span = ImageSpan(len(order), positions.float(), raster.length, weights)
    return TokenOrder(order, span, leaves)


def cut_tiles(
    pixels: Tensor, shape: tuple[int, int], image: Box, settings: QLIPConfig, patch_size: int, native_grid: int
) -> tuple[CutImage, ...]:
    """Cuts the tiles of an image into the leaves of their quadtrees, and the base into the native grid.

    Args:
        pixels: float (1 + T, C, S, S), normalised: the base, then T tiles in raster order.
        shape: (rows, columns) of tiles; T is their product.
        image: the part of the joined tiles that is not padding, in pixels.
        settings: see `partition_tiles`; `geometry` decides how leaves are resampled.
        patch_size: P. Pixels of a tile beyond its last whole cell are dropped, as a vision transformer does.
        native_grid: n, cells per side of a tile.

    Returns:
        The base and the tiles.

    Raises:
        ValueError: see `partition_tiles`.
    """
    side = native_grid * patch_size
    base, tiles = pixels[0, :, :side, :side], pixels[1:, :, :side, :side]
    trees = partition_tiles(pixels[1:], shape, image, settings, patch_size, native_grid)
    cuts = [
        CutImage(tree, extract_patches(tile, tree, patch_size, settings.geometry))
        for tile, tree in zip(tiles, trees, strict=True)
    ]
    return native_cut(base, patch_size), *cuts


@torch.no_grad()
def partition_tiles(
    tiles: Tensor, shape: tuple[int, int], image: Box, settings: QLIPConfig, patch_size: int, native_grid: int
) -> list[Leaves]:
    """Cuts each tile by one quadtree; `max_tokens` is the budget of all together.

    Roots are aligned with the tiles. With `coarsest` "native" no leaf is longer than a cell of the base along the
    image's longer side, as far as the budget allows. Padding is scored as if the image's edge went on, so that the
    border between the two is not detail. Criteria "objects" and "structure" see each tile by itself: what of a large
    object reaches into the next tile may count as small there.

    Args:
        tiles: float (T, C, S, S), normalised, in raster order; S at least n * P.
        shape: (rows, columns) of tiles.
        image: the part of the joined tiles that is not padding, in pixels.
        settings: `alpha`, `criterion`, `max_tokens`, `split_order`, `coarsest`, `structure_size`, `noise_floor` and
            `seed` decide.
        patch_size: P.
        native_grid: n, cells per side of a tile.

    Raises:
        ValueError: the coarsest trees have more leaves than `max_tokens`.
    """
    cells = (native_grid, native_grid)
    longer = max(image[2:]) // tiles.shape[-1]  # tiles that the image is long, rounded down
    level = _find_level(len(tiles), longer, native_grid, settings)
    roots = find_roots(cells, max_leaf=2**level)
    fewest = len(tiles) * count_roots(roots, cells)
    trees = f"trees of {len(tiles)} tiles of {native_grid} x {native_grid} cells have"
    remedy = "allow more tokens, or set tiling to 'image'"
    splits_left = spare_splits(settings.max_tokens, fewest, trees, remedy)
    rows, cols = shape
    canvas = _join_tiles(tiles.float(), rows, cols)
    top, left, height, width = image
    inside = canvas[:, top : top + height, left : left + width]
    below, right = canvas.shape[1] - top - height, canvas.shape[2] - left - width
    extended = F.pad(inside[None], (left, right, top, below), mode="replicate")[0]
    noise = find_noise(settings.criterion, settings.noise_floor, inside)
    generator = torch.Generator("cpu").manual_seed(settings.seed)
    side = native_grid * patch_size
    pyramids = [
        score_pyramid(
            tile[:, :side, :side],
            patch_size,
            level,
            settings.criterion,
            structure_size=settings.structure_size,
            image_pixels=len(tiles) * side**2,
            generator=generator,
            noise=noise,
        )
        for tile in split_tiles(extended, rows, cols)
    ]
    scores = [torch.stack(of_level) for of_level in zip(*pyramids, strict=True)]
    splits = choose_splits(scores, cells, settings.alpha, splits_left, settings.split_order)
    return [read_leaves([split[tile] for split in splits], roots, cells) for tile in range(len(tiles))]


def merge_tiles(trees: list[Leaves], shape: tuple[int, int], window: Box) -> tuple[Leaves, Tensor]:
    """Joins the leaves of tiles to those of the window, in cells, that is not padding.

    Returns:
        The leaves that reach into the window, on its grid, which they may stick out of; and which they are of all, in
        the order of the tiles: bool (M,).
    """
    (_, cols), (top, left, height, width) = shape, window
    parts = []
    for number, tree in enumerate(trees):
        (rows, columns), boxes = tree.grid, tree.boxes.clone()
        boxes[:, 0] += number // cols * rows - top
        boxes[:, 1] += number % cols * columns - left
        parts.append(boxes)
    boxes = torch.cat(parts)
    row, col, size = boxes.unbind(1)
    reaches = (row + size > 0) & (row < height) & (col + size > 0) & (col < width)
    return Leaves(boxes[reaches], (height, width)), reaches


def _find_level(tiles: int, longer: int, native_grid: int, settings: QLIPConfig) -> int:
    """Finds the level of the coarsest blocks of a tile, by the tiles along the image's longer side."""
    cells = (native_grid, native_grid)
    largest = find_roots(cells).level
    if settings.coarsest == "any":
        return largest
    level = min(largest, max(1, longer).bit_length() - 1)
    if (most := settings.max_tokens) is not None:
        while level < largest and tiles * count_roots(find_roots(cells, max_leaf=2**level), cells) > most:
            level += 1
    return level


def _join_tiles(tiles: Tensor, rows: int, cols: int) -> Tensor:
    """Joins (T, C, S, S) in raster order to (C, rows * S, cols * S)."""
    channels, side = tiles.shape[1:3]
    grid = tiles.view(rows, cols, channels, side, side).permute(2, 0, 3, 1, 4)
    return grid.reshape(channels, rows * side, cols * side)


def split_tiles(canvas: Tensor, rows: int, cols: int) -> Tensor:
    """Splits (C, rows * S, cols * S) to rows * cols tiles in raster order, (T, C, S, S)."""
    channels, height, width = canvas.shape
    grid = canvas.view(channels, rows, height // rows, cols, width // cols).permute(1, 3, 0, 2, 4)
    return grid.reshape(rows * cols, channels, height // rows, width // cols)
