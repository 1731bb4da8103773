"""What `QLIPVisionModel` computes: the features of images, and the hidden states of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qlip.quadtree import Leaves


@dataclass(frozen=True)
class QLIPOutput:
    """The output of `QLIPVisionModel`, one entry per image."""

    features: list[Tensor]
    """(M_i, D): the selected hidden layer; with a thumbnail its n * n tokens first, then the leaves in raster order.
    Several layers are concatenated along D."""

    leaves: list[Leaves]
    """The trees."""

    pooled: Tensor | None
    """(B, D): the model's own pooled output over [CLS] and leaves (SigLIP: its attention head), if asked for."""


@dataclass(frozen=True)
class HiddenStates:
    """Hidden states of a padded batch."""

    layers: dict[int, Tensor]
    """(B, T, D) by number of the layer, 0 before the first; [CLS] first."""

    valid: Tensor
    """bool (B, T), True on tokens, False on padding."""

    lengths: list[int]
    """Tokens of each image, [CLS] included."""

    def select(self, layers: Sequence[int], prefix: int) -> list[Tensor]:
        """Selects the features (M_i, D times layers) of each image, without the `prefix` tokens and padding."""
        joined = torch.cat([self.layers[layer] for layer in layers], dim=-1)
        return [joined[i, prefix:length] for i, length in enumerate(self.lengths)]
