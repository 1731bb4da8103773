"""What an image's leaves are to the language model: their places on the native raster and their weights.

Pure functions of settings and leaves. Knows nothing of towers or text.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qlip.config import QLIPConfig
from qlip.placement import ImageSpan
from qlip.positions import raster_positions
from qlip.quadtree import Leaves


def image_span(settings: QLIPConfig, leaves: Leaves, native_grid: int) -> ImageSpan:
    """Where an image's tokens stand, thumbnail first where there is one, and what they weigh.

    Args:
        settings: `llm_positions`, `llm_size_bias`, `llm_weight` and `thumbnail` decide.
        leaves: of the image.
        native_grid: n, cells per side of the grid that the tower was trained on.
    """
    count = len(leaves) + (native_grid**2 if settings.thumbnail else 0)
    positions = _positions(settings, leaves, native_grid)
    span = count if positions is None else native_grid**2
    return ImageSpan(count, positions, span, _sizes(settings, leaves, native_grid))


def _positions(settings: QLIPConfig, leaves: Leaves, native_grid: int) -> Tensor | None:
    """float32 (M,): places of an image's tokens on the native raster; None where positions are sequential."""
    if settings.llm_positions == "sequential":
        return None
    places = raster_positions(leaves, native_grid)
    if settings.thumbnail:
        places = torch.cat([torch.arange(native_grid**2, dtype=torch.float32), places])
    return places


def _sizes(settings: QLIPConfig, leaves: Leaves, native_grid: int) -> Tensor | None:
    """float32 (M,): side of the square of cells that each token weighs in the language model's attention.

    Twice its logarithm is added to the token's attention logits: s * log(size^2) for `llm_size_bias` s, and one number
    for all where `llm_weight` is "native". None where every token weighs one.
    """
    if not settings.biases_language_model:
        return None
    sizes = leaves.sizes.float()
    if settings.thumbnail:
        covered = (leaves.grid[0] * leaves.grid[1]) ** 0.5 / native_grid
        sizes = torch.cat([torch.full((native_grid**2,), covered), sizes])
    sizes = sizes**settings.llm_size_bias
    if settings.llm_weight == "native":
        sizes = sizes * (native_grid / sizes.square().sum().sqrt())
    return None if (sizes == 1).all() else sizes
