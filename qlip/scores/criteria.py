"""Scores of all blocks of an image, level by level from single cells up (paper section 3.1).

Each criterion reads the pixels a constant number of times into a small summary per cell; four summaries merge into
that of their parent.

A score pyramid is a list over levels: entry k is float (ceil(rows / 2^k), ceil(cols / 2^k)), the scores of the blocks
of 2^k x 2^k cells tiled from the top-left corner. The scores of blocks that extend beyond the grid have no meaning.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qlip.config import Criterion, QLIPConfig, check_choice, check_window
from qlip.scores.arrays import as_array, as_tensor, quarters
from qlip.scores.edges import diagonal_scores, gradient_scores
from qlip.scores.structure import structure_scores

WINDOWED = ("objects", "structure")
"""Criteria that look through a window, whose size is `structure_size`, and that the noise floor lowers."""


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
        criterion: one of "gradient", "structure", "objects", "variance", "diagonal", "random".
        structure_size: window of "structure" and "objects", in sampled pixels.
        image_pixels: H * W of the whole image, which normalises "variance", if `image` is a part of it.
        generator: source of "random"; by default one with seed 0.
        noise: float (C,), standard deviation of the image's noise, which "structure" and "objects" disregard; None: no
            noise floor.

    Returns:
        levels + 1 tensors, of criterion "objects" on the CPU; entry 0 is zeros, since a cell never splits.
    """
    check_choice("criterion", criterion, Criterion)
    rows, cols = image.shape[1] // patch_size, image.shape[2] // patch_size
    if criterion == "objects":
        image = image.cpu()  # line follows line in its sweeps, which a GPU is slow at
    cells = image.new_zeros(rows, cols)
    if levels == 0:
        return [cells]
    if criterion == "random":
        return [cells, *random_scores(cells, levels, generator)]
    if criterion == "variance":
        pixels = image_pixels or image.shape[1] * image.shape[2]
        return [cells, *variance_scores(image, patch_size, levels, pixels)]
    array = as_array(image)
    if criterion == "gradient":
        scores = gradient_scores(array, patch_size, levels)
    elif criterion == "diagonal":
        scores = diagonal_scores(array, patch_size, levels)
    else:
        check_window(structure_size)
        sigma = None if noise is None else as_array(noise.to(image))
        scores = structure_scores(array, patch_size, levels, structure_size, sigma, objects=criterion == "objects")
    return [cells, *map(as_tensor, scores)]


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


def random_scores(cells: Tensor, levels: int, generator: torch.Generator | None) -> list[Tensor]:
    """Draws scores uniformly from [0, 1), level by level from 1, in raster order: the control experiment."""
    generator = generator or torch.Generator("cpu").manual_seed(0)
    shapes = [tuple(-(-extent // 2**k) for extent in cells.shape) for k in range(1, levels + 1)]
    drawn = (torch.rand(shape, generator=generator, dtype=torch.float32, device=generator.device) for shape in shapes)
    return [scores.to(cells.device) for scores in drawn]
