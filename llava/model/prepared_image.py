"""Images on their way into a vision tower: cut into leaves or resized to pixels, and what they will cost.

Needs no model. Light: worker processes import this file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llava.mm_utils import process_images
from qlip.config import QLIPConfig
from qlip.language_positions import image_span
from qlip.patches import CutImage

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from qlip.cutting import ImageCutter
    from qlip.quadtree import Leaves


@dataclass(frozen=True)
class PreparedImage:
    """One image as a tower takes it."""

    image: CutImage | Tensor
    """What the tower's `encode_tokens` takes: leaves, or float32 (C, H, W), (tiles, C, H, W)."""
    settings: QLIPConfig | None
    """What a quadtree tower encodes it under; None for a tower without a quadtree."""
    tokens: int
    """Visual tokens in the language model."""
    positions: int
    """Positions in the language model."""
    uniform_tokens: int
    """Tokens of the uniform grid at the same size."""
    size: tuple[int, int]
    """(height, width) in pixels, as the tower gets it."""

    @property
    def context(self) -> int:
        """How much of the context window it takes: tokens or positions, whichever are more."""
        return max(self.tokens, self.positions)

    @property
    def leaves(self) -> Leaves | None:
        """The quadtree's; None on the uniform grid."""
        return self.image.leaves if isinstance(self.image, CutImage) else None


def prepare_leaves(image: Image.Image, cutter: ImageCutter, settings: QLIPConfig) -> PreparedImage:
    """Resizes an image and cuts it into the leaves of its quadtree."""
    cut = cutter.prepare(image, settings)
    span = image_span(settings, cut.leaves, cutter.native_grid)
    rows, cols = cut.leaves.grid
    size = (rows * cutter.patch_size, cols * cutter.patch_size)
    return PreparedImage(cut, settings, span.count, span.length, rows * cols, size)


def prepare_pixels(
    image: Image.Image, processor: Any, config: Any, native_tokens: int, settings: QLIPConfig | None = None
) -> PreparedImage:
    """Prepares an image for the uniform grid, by a CLIP or SigLIP image processor.

    Args:
        image: the image.
        processor: the image processor.
        config: has `image_aspect_ratio`, see `process_images`.
        native_tokens: tokens of one image of the native size.
        settings: see `PreparedImage`.
    """
    pixels = process_images([image], processor, config)[0]
    tokens = native_tokens * (len(pixels) if pixels.ndim == 4 else 1)  # of each tile
    size = (pixels.shape[-2], pixels.shape[-1])
    return PreparedImage(pixels, settings, tokens, tokens, tokens, size)
