"""Images on their way into a vision tower: cut into leaves or resized to pixels, and what they will cost.

Needs no model. Light: worker processes import this file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from llava.mm_utils import process_images
from llava.model.vision.anyres import TileLayout, lay_out, plan_tiles
from llava.model.vision.quadtree_tiles import Cuts, check_quadtree, cut_for_tiles, has_tiles, merge_cuts, order_cuts
from qlip.config import QLIPConfig
from qlip.images.rgb import to_rgb
from qlip.language_positions import image_span
from qlip.patches import CutImage
from qlip.question import QuestionCut, cut_for_question

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from qlip.cutting import CutOne, ImageCutter
    from qlip.quadtree import Leaves
    from qlip.tiles import TokenOrder


@dataclass(frozen=True)
class PreparedImage:
    """One image as a tower takes it."""

    image: Cuts | Tensor
    """What the tower's `encode_tokens` takes: leaves, of the image or of base and tiles; or float32 (C, H, W),
    (1 + tiles, C, H, W)."""
    settings: QLIPConfig | None
    """The settings that a quadtree tower encodes it with; None for a tower without a quadtree."""
    tokens: int
    """Visual tokens in the language model; while a question is awaited, those that it will have."""
    positions: int
    """Positions in the language model."""
    uniform_tokens: int
    """Tokens of the uniform grid at the same size; where the model was trained on tiles, those of base and tiles."""
    size: tuple[int, int]
    """(height, width) in pixels, as the tower gets it; of each tile where it has tiles."""
    question: QuestionCut | None = None
    """The cuts between which a question decides, of which `image` is the first; None where no question decides."""
    tiles: TileLayout | None = None
    """The tiles of a model that joins them, which leaves may take the places of; None where there are none, or they
    follow each other as they are."""
    order: TokenOrder | None = None
    """The leaves' sequence on the raster of `tiles`; None where there are none, or it is still to be found."""

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Its entry in LLaVA's `image_sizes`, (width, height); None if nothing reads it."""
        return None if self.tiles is None else self.tiles.original

    @property
    def context(self) -> int:
        """How much of the context window it takes: the larger of its token and position counts."""
        return max(self.tokens, self.positions)

    @cached_property
    def leaves(self) -> Leaves | None:
        """The quadtree's, those in padding left out; None on the uniform grid."""
        if isinstance(self.image, CutImage):
            return self.image.leaves
        if isinstance(self.image, tuple) and self.tiles is not None:
            return merge_cuts(self.image, self.tiles)[0] if self.order is None else self.order.leaves
        return None

    @cached_property
    def patches(self) -> Tensor:
        """float32 (N, C, P, P), of `leaves`.

        Raises:
            ValueError: there are none.
        """
        if isinstance(self.image, CutImage):
            return self.image.patches
        if isinstance(self.image, tuple) and self.tiles is not None:
            _, shown = merge_cuts(self.image, self.tiles)
            return torch.cat([tile.patches for tile in self.image[1:]])[shown]
        raise ValueError("the image is not cut into leaves")

    @property
    def first_tokens(self) -> int:
        """Visual tokens that the question is asked about first; 0 where it decides nothing."""
        if self.question is None:
            return 0
        thumbnail = 0 if self.question.first.thumbnail is None else self.question.native_grid**2
        return thumbnail + len(self.question.first.leaves)

    def refine(self, weights: Tensor) -> PreparedImage:
        """Splits what a question attends to; an image that awaits none is returned as it is.

        Args:
            weights: float (M,), the question's attention on the tokens of `image`.
        """
        if self.question is None or self.settings is None:
            return self
        cut = self.question.refine(weights)
        span = image_span(self.settings, cut.leaves, self.question.native_grid)
        return replace(self, image=cut, tokens=span.count, positions=span.length, question=None)


def prepare_leaves(
    image: Image.Image, cutter: ImageCutter, settings: QLIPConfig, config: Any = None, side: int | None = None
) -> PreparedImage:
    """Resizes an image and cuts it into the leaves of its quadtree, or for the question that will decide on them.

    Args:
        image: the image, of any mode.
        cutter: of the tower.
        settings: how it is cut.
        config: the model's, if it may have been trained on tiles: then leaves take their places.
        side: of a tile in pixels, by default the cutter's native size.

    Raises:
        ValueError: the settings don't go with tiles, or the budget is too small for them.
    """
    if config is not None:
        check_quadtree(config, settings)
    if config is not None and has_tiles(config):
        side = side or cutter.native_size
        image = to_rgb(image)  # upright, before it is measured
        layout = lay_out(config, image.size, side)
        cuts = cut_for_tiles(image, cutter, settings, layout, side)
        order = order_cuts(cuts, layout, settings, cutter.native_grid)
        rows, cols = cuts.leaves.grid if isinstance(cuts, CutImage) else (cutter.native_grid, cutter.native_grid)
        size = (rows * cutter.patch_size, cols * cutter.patch_size)
        whole = layout.count(cutter.native_grid)
        span = order.span
        return PreparedImage(cuts, settings, span.count, span.length, whole, size, tiles=layout, order=order)
    return prepare_cut(cutter.make_preparer(image), cutter, settings)


def prepare_cut(cut: CutOne, cutter: ImageCutter, settings: QLIPConfig) -> PreparedImage:
    """Prepares an image that `cut` cuts under the settings that it is given; see `prepare_leaves`."""
    waiting = cut_for_question(cut, cutter.native_grid, settings) if settings.budget == "question" else None
    if waiting is None:
        first = cut(settings)
    elif waiting.splits:
        first = waiting.first
    else:  # no question could change it
        first, waiting = waiting.unasked, None
    span = image_span(settings, first.leaves, cutter.native_grid)
    more = 0 if waiting is None else waiting.most_leaves - len(first.leaves)
    positions = span.length + (more if span.positions is None else 0)
    rows, cols = first.leaves.grid
    size = (rows * cutter.patch_size, cols * cutter.patch_size)
    return PreparedImage(first, settings, span.count + more, positions, rows * cols, size, waiting)


def prepare_pixels(
    image: Image.Image, processor: Any, config: Any, native_tokens: int, settings: QLIPConfig | None = None
) -> PreparedImage:
    """Prepares an image for the uniform grid, by a CLIP or SigLIP image processor.

    Args:
        image: the image, of any mode.
        processor: the image processor.
        config: has `image_aspect_ratio`, see `process_images`; and for anyres `mm_patch_merge_type`.
        native_tokens: tokens of one image of the native size.
        settings: see `PreparedImage`.
    """
    image = to_rgb(image)  # as a quadtree sees it
    pixels = process_images([image], processor, config)[0]
    size = (pixels.shape[-2], pixels.shape[-1])
    has_tiles = pixels.ndim == 4
    tiles = plan_tiles(config, image.size, len(pixels), size[0]) if has_tiles else None
    if tiles is None:
        tokens = native_tokens * (len(pixels) if has_tiles else 1)
    else:
        tokens = tiles.count(math.isqrt(native_tokens))
    return PreparedImage(pixels, settings, tokens, tokens, tokens, size, tiles=tiles)
