"""Scores of all blocks of an image, level by level from single cells up (paper section 3.1).

Each criterion reads the pixels a constant number of times into a small summary per cell; four summaries merge into
that of their parent.

A score pyramid is a list over levels: entry k is float (ceil(rows / 2^k), ceil(cols / 2^k)), the scores of the blocks
of 2^k x 2^k cells tiled from the top-left corner. The scores of blocks that extend beyond the grid have no meaning.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from qlip.config import Criterion, QLIPConfig, check_choice, check_window


def score_pyramid(
    image: Tensor,
    patch_size: int,
    levels: int,
    criterion: Criterion = QLIPConfig.criterion,
    *,
    structure_size: int = QLIPConfig.structure_size,
    image_pixels: int | None = None,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
) -> list[Tensor]:
    """Scores every block of levels 1 to `levels`.

    Args:
        image: float (C, H, W), normalised; H and W multiples of `patch_size`.
        patch_size: P, pixels per side of a cell.
        levels: the top level; blocks of 2^levels cells.
        criterion: one of "gradient", "structure", "variance", "diagonal", "random".
        structure_size: window of "structure", in sampled pixels.
        image_pixels: H * W of the whole image, which normalises "variance", if `image` is a part of it.
        generator: source of "random"; by default one with seed 0.
        noise: float (C,), standard deviation of the image's noise, which "structure" disregards; None for none.

    Returns:
        levels + 1 tensors; entry 0 is zeros, since a cell never splits.
    """
    check_choice("criterion", criterion, Criterion)
    rows, cols = image.shape[1] // patch_size, image.shape[2] // patch_size
    cells = image.new_zeros(rows, cols)
    if levels == 0:
        return [cells]
    if criterion == "gradient":
        scores = edge_scores(in_bands(gradient_summary, image, patch_size), levels)
    elif criterion == "diagonal":
        scores = edge_scores(in_bands(diagonal_summary, image, patch_size), levels)
    elif criterion == "variance":
        scores = variance_scores(image, patch_size, levels, image_pixels or image.shape[1] * image.shape[2])
    elif criterion == "structure":
        scores = structure_scores(image, patch_size, levels, structure_size, noise)
    else:
        scores = random_scores(cells, levels, generator)
    return [cells, *scores]


# Where a pixel's difference reaches across its cell's edge, it counts only in blocks that hold both cells. A cell is
# therefore summarised by eight maxima, stacked in this order. "Joined" takes the neighbour beyond the edge as present.
INNER, RIGHT, RIGHT_JOINED, BOTTOM, BOTTOM_JOINED, CORNER_RIGHT, CORNER_BOTTOM, CORNER_BOTH = range(8)


NOISE_HEIGHT = 5.0
"""Standard deviations of noise that a hat over one block reaches by chance alone."""

MOST_NOISE = 0.17
"""Most noise that the cells of a split may show, in normalised units: about 12 of 255 in CLIP's."""

BAND = 16  # rows of cells; a band's temporaries stay in a CPU's cache


def in_bands(summarise: Callable[[Tensor, int], Tensor], image: Tensor, patch_size: int) -> Tensor:
    """Computes the edge summary (8, rows, cols) of an image; on a CPU by bands, several times faster if large.

    A band includes the row of cells below it, which its last differences reach into.
    """
    rows = image.shape[1] // patch_size
    if image.device.type != "cpu" or rows <= BAND:
        return summarise(image, patch_size)
    bands = [image[:, top * patch_size : (top + BAND + 1) * patch_size] for top in range(0, rows, BAND)]
    return torch.cat([summarise(band, patch_size)[:, :BAND] for band in bands], dim=1)


def gradient_summary(image: Tensor, patch_size: int) -> Tensor:
    """Summarises max over channels of |d/drow| + |d/dcol|, forward differences, the paper's score: (8, rows, cols).

    At a block's last row (column) the missing vertical (horizontal) difference counts as zero.
    """
    last = patch_size - 1
    down, across = torch.empty_like(image), torch.empty_like(image)
    torch.sub(image[:, 1:], image[:, :-1], out=down[:, :-1])
    torch.sub(image[:, :, 1:], image[:, :, :-1], out=across[:, :, :-1])
    down[:, -1], across[:, :, -1] = 0, 0
    down.abs_()
    across.abs_()
    down_only = down[:, :, last::patch_size].amax(0).unflatten(0, (-1, patch_size))  # (rows, P, cols): last columns
    across_only = across[:, last::patch_size].amax(0).unflatten(1, (-1, patch_size))  # (rows, cols, P): last rows
    both = _in_cells(down.add_(across).amax(0), patch_size)
    return torch.stack(
        [
            _cell_max(both[:, :-1, :, :-1]),
            down_only[:, :-1].amax(1),
            both[:, :-1, :, last].amax(1),
            across_only[:, :, :-1].amax(2),
            both[:, last, :, :-1].amax(2),
            across_only[:, :, last],
            down_only[:, last],
            both[:, last, :, last],
        ]
    )


def diagonal_summary(image: Tensor, patch_size: int) -> Tensor:
    """Summarises max over channels of I[r+1, c+1] - I[r, c], signed, the authors' "deriv": (8, rows, cols)."""
    last, nothing = patch_size - 1, -torch.inf
    step = image.new_full(image.shape[1:], nothing)
    step[:-1, :-1] = (image[:, 1:, 1:] - image[:, :-1, :-1]).amax(0)
    step = _in_cells(step, patch_size)
    absent = torch.full_like(step[:, last, :, last], nothing)
    return torch.stack(
        [
            _cell_max(step[:, :-1, :, :-1]),
            absent,
            step[:, :-1, :, last].amax(1),
            absent,
            step[:, last, :, :-1].amax(2),
            absent,
            absent,
            step[:, last, :, last],
        ]
    )


def edge_scores(summary: Tensor, levels: int) -> list[Tensor]:
    """Merges an edge summary (8, rows, cols) upwards into the scores of levels 1 to `levels`, at least 0."""
    scores = []
    for _ in range(levels):
        a, b, c, d = quarters(summary)  # top left, top right, bottom left, bottom right
        summary = torch.stack(
            [
                _largest(
                    *(a[INNER], b[INNER], c[INNER], d[INNER]),
                    *(a[RIGHT_JOINED], c[RIGHT_JOINED], a[BOTTOM_JOINED], b[BOTTOM_JOINED], a[CORNER_BOTH]),
                ),
                _largest(b[RIGHT], d[RIGHT], b[CORNER_BOTTOM]),
                _largest(b[RIGHT_JOINED], d[RIGHT_JOINED], b[CORNER_BOTH]),
                _largest(c[BOTTOM], d[BOTTOM], c[CORNER_RIGHT]),
                _largest(c[BOTTOM_JOINED], d[BOTTOM_JOINED], c[CORNER_BOTH]),
                *d[CORNER_RIGHT:],
            ]
        )
        scores.append(summary[[INNER, RIGHT, BOTTOM]].amax(0).clamp_(min=0))
    return scores


def variance_scores(image: Tensor, patch_size: int, levels: int, image_pixels: int) -> list[Tensor]:
    """Computes max over channels of (pixels in the block) * unbiased variance / (image_pixels / 1000), by level from 1.

    Means and summed squares merge pairwise (Chan et al. 1983), exact to float32 and exactly 0 for a constant block.
    """
    cells = image.unflatten(2, (-1, patch_size)).unflatten(1, (-1, patch_size))  # (C, rows, P, cols, P)
    first = cells[:, :, :1, :, :1]
    shifted = cells - first
    mean = shifted.mean((2, 4), keepdim=True)
    squares = (shifted - mean).square_().sum((2, 4))  # (C, rows, cols), about the cell's own mean
    mean = (mean + first)[:, :, 0, :, 0]
    pixels = patch_size**2
    scores = []
    for _ in range(levels):
        means, parts = quarters(mean), quarters(squares)
        mean = ((means[0] + means[1]) + (means[2] + means[3])) / 4  # this order keeps equal means equal
        between = torch.stack([(m - mean).square() for m in means]).sum(0)
        squares = torch.stack(parts).sum(0) + pixels * between
        pixels *= 4
        scores.append((squares / (pixels - 1)).amax(0) * (pixels * 1000 / image_pixels))
    return scores


def structure_scores(
    image: Tensor, patch_size: int, levels: int, size: int, noise: Tensor | None = None
) -> list[Tensor]:
    """Computes the largest top-hat or bottom-hat of a block sampled to P x P, by level from 1; at least its children's.

    A block scores high if and only if, at its own sampling, it holds structure narrower than `size` pixels in some
    direction: large objects keep large leaves, small ones get small leaves. Opening and closing see the pooled image
    extended by its border pixels.

    With noise of deviation sigma in each channel, the hats at level k are lowered by NOISE_HEIGHT sigma / 2^k, what
    averaged noise reaches by itself; where the cells that a split makes would show noise of more than MOST_NOISE, the
    score is 0 (docs/METHOD.md, "Noise floor").
    """
    check_window(size)
    noise = None if noise is None else noise.to(image)
    scores = [image.new_zeros(image.shape[1] // patch_size, image.shape[2] // patch_size)]
    for level in range(1, levels + 1):
        image = _halve(image)
        detail = _narrow_structure(image, size, None if noise is None else noise * (NOISE_HEIGHT / 2**level))
        if noise is not None:  # by a mask, since a number would wait for a GPU
            detail = detail.masked_fill(noise.max() / 2 ** (level - 1) > MOST_NOISE, 0)
        rows, cols = image.shape[1] // patch_size, image.shape[2] // patch_size
        own = _cell_max(_in_cells(detail[: rows * patch_size, : cols * patch_size], patch_size))
        children = _largest(*quarters(scores[-1]))
        rim = (0, children.shape[1] - cols, 0, children.shape[0] - rows)
        scores.append(torch.maximum(children, F.pad(own, rim)))
    return scores[1:]


def random_scores(cells: Tensor, levels: int, generator: torch.Generator | None) -> list[Tensor]:
    """Draws scores uniformly from [0, 1), level by level from 1, in raster order: the control experiment."""
    generator = generator or torch.Generator().manual_seed(0)
    shapes = [tuple(-(-extent // 2**k) for extent in cells.shape) for k in range(1, levels + 1)]
    return [torch.rand(shape, generator=generator, device=generator.device).to(cells.device) for shape in shapes]


def quarters(grid: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Splits a grid into the four children of its blocks, in raster order: (..., r, c) -> 4 of (..., r/2, c/2).

    An odd row or column is padded with zeros.
    """
    rows, cols = grid.shape[-2:]
    grid = F.pad(grid, (0, cols % 2, 0, rows % 2))
    return grid[..., ::2, ::2], grid[..., ::2, 1::2], grid[..., 1::2, ::2], grid[..., 1::2, 1::2]


def _halve(image: Tensor) -> Tensor:
    """Averages 2 x 2 pixels, (C, H, W) -> (C, H // 2, W // 2): bitwise equal to `avg_pool2d`, and 3 times as fast."""
    rows, cols = image.shape[1] // 2 * 2, image.shape[2] // 2 * 2
    upper, lower = image[:, 0:rows:2, :cols], image[:, 1:rows:2, :cols]
    return (upper[..., ::2] + upper[..., 1::2] + lower[..., ::2] + lower[..., 1::2]) / 4


def _narrow_structure(image: Tensor, size: int, floor: Tensor | None = None) -> Tensor:
    """Computes max over channels of image - opening and closing - image, flat square windows: (C, H, W) -> (H, W).

    A floor (C,) is subtracted from each channel's, down to 0.
    """
    reach = 2 * (size // 2)
    padded = F.pad(image[None], (reach,) * 4, mode="replicate")[0]
    opening = _dilate(-_dilate(-padded, size), size)
    closing = -_dilate(-_dilate(padded, size), size)
    hats = torch.maximum(image - opening, closing - image)
    return hats.amax(0) if floor is None else (hats - floor[:, None, None]).amax(0).clamp_(min=0)


def _dilate(image: Tensor, size: int) -> Tensor:
    """Computes the maximum over size x size windows inside (..., H, W); separable, by doubling the window."""
    for dim in (-2, -1):
        window = 1
        while window < size:
            step = min(window, size - window)
            length = image.shape[dim] - step
            image = torch.maximum(image.narrow(dim, 0, length), image.narrow(dim, step, length))
            window += step
    return image


def _in_cells(pixels: Tensor, patch_size: int) -> Tensor:
    """Views pixels (rows P, cols P) as (rows, P, cols, P)."""
    return pixels.unflatten(1, (-1, patch_size)).unflatten(0, (-1, patch_size))


def _cell_max(pixels: Tensor) -> Tensor:
    """Computes each cell's maximum: (rows, P, cols, P) -> (rows, cols)."""
    return pixels.amax(1).amax(2)  # row by row first: twice as fast as both at once


def _largest(*tensors: Tensor) -> Tensor:
    largest = tensors[0]
    for tensor in tensors[1:]:
        largest = torch.maximum(largest, tensor)
    return largest
