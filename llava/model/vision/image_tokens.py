"""Visual tokens: an image's features with their positions and weights in the language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llava.model.vision.anyres import TileLayout
from qlip.language_positions import ImageSpan
from qlip.tiles import TokenOrder


@dataclass(frozen=True)
class ImageTokens:
    """One encoded image."""

    features: Tensor
    """(N, D)."""

    span: ImageSpan
    """Positions and weights of the N tokens."""

    tiles: TileLayout | TokenOrder | None = None
    """How tiles, or leaves in their places, are joined once they are projected; None if there is nothing to join."""

    def with_features(self, features: Tensor) -> ImageTokens:
        """Replaces the features, for example by the projected ones."""
        return replace(self, features=features)

    def select(self, keep: Tensor) -> ImageTokens:
        """Leaves tokens out; the others keep their positions, and the image its length.

        Args:
            keep: bool (N,).

        Raises:
            ValueError: the tokens' tiles are still to be joined.
        """
        if self.tiles is not None:
            raise ValueError("tokens can be left out once the image's tiles are joined; call `project` first")
        return ImageTokens(self.features[keep.to(self.features.device)], self.span.select(keep))

    def with_tiles(self, tiles: TileLayout | TokenOrder | None) -> ImageTokens:
        """Sets how the tiles will be joined."""
        return replace(self, tiles=tiles)

    def join_tiles(self, newline: Tensor | None) -> ImageTokens:
        """Joins the tiles as `tiles` says; then tiles' tokens count as text does.

        Args:
            newline: (D,), the model's `image_newline`.
        """
        if self.tiles is None:
            return self
        if isinstance(self.tiles, TokenOrder):
            return ImageTokens(self.tiles.gather(self.features, newline), self.tiles.span)
        features = self.tiles.merge(self.features, newline)
        return ImageTokens(features, ImageSpan.sequential(len(features)))

    @staticmethod
    def join(parts: Sequence[ImageTokens]) -> ImageTokens:
        """Joins the parts of an image (tiles), one after the other."""
        if len(parts) == 1:
            return parts[0]
        features = torch.cat([part.features for part in parts])
        return ImageTokens(features, ImageSpan.join([part.span for part in parts]))


def stack_features(tokens: Sequence[ImageTokens]) -> Tensor | list[Tensor]:
    """Stacks the images' features to one tensor (B, N, D) where all have N tokens, else lists them, (N_i, D) each."""
    features = [image.features for image in tokens]
    same = len({len(feature) for feature in features}) == 1
    return torch.stack(features) if same else features
