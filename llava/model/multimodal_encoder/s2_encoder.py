"""The CLIP tower at several scales (S2): windows of its size at each, averaged to one grid and joined in width."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from llava.model.config import MultimodalConfig
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower

DEFAULT_SCALES = "336,672,1008"


def read_scales(config: MultimodalConfig) -> tuple[int, ...] | None:
    """Reads `s2_scales`, in ascending order; None if `s2` is off.

    Raises:
        ValueError: they are not sizes, or not multiples of the first.
    """
    if not config.s2:
        return None
    text = DEFAULT_SCALES if config.s2_scales is None else config.s2_scales
    try:
        scales = tuple(sorted(int(scale) for scale in str(text).split(",")))
    except ValueError:
        scales = ()
    if not scales or scales[0] < 1 or any(scale % scales[0] for scale in scales):
        raise ValueError(f"s2_scales is {text!r}; it must list multiples of the first, such as {DEFAULT_SCALES!r}")
    if config.mm_vision_select_feature != "patch":
        raise ValueError(f"mm_vision_select_feature is {config.mm_vision_select_feature!r}; s2 takes 'patch' only")
    return scales


class CLIPVisionTowerS2(CLIPVisionTower):
    """Runs the pretrained tower on every scale; an image has the first one's tokens, each several times as wide.

    As in S2's own code, a scale is interpolated bicubically from the largest, which the image processor makes.
    """

    def __init__(self, config: MultimodalConfig, scales: tuple[int, ...]) -> None:
        self.scales = scales
        super().__init__(config)

    def _wrap(self, model: PreTrainedModel) -> PreTrainedModel:
        if self.scales[0] != model.config.image_size:
            raise ValueError(
                f"s2_scales begin with {self.scales[0]}, but the tower takes {model.config.image_size} pixels"
            )
        return model

    def _prepare(self, processor: Any) -> Any:
        side = {"height": self.scales[-1], "width": self.scales[-1]}
        crops = processor.crop_size is not None
        sizes = {"size": {"shortest_edge": self.scales[-1]}, "crop_size": side} if crops else {"size": side}
        return type(processor).from_dict({**processor.to_dict(), **sizes})

    @property
    def input_size(self) -> int:
        """Side in pixels of the largest scale."""
        return self.scales[-1]

    @property
    def hidden_size(self) -> int:
        """Width of the features of all scales."""
        return self.config.hidden_size * len(self.scales)

    def compute_features(self, pixels: Tensor) -> Tensor:
        """Computes the features (B, n * n, scales * D) of images (B, C, S, S) of the largest scale."""
        return torch.cat([self._encode_scale(pixels, scale) for scale in self.scales], dim=-1)

    def _encode_scale(self, pixels: Tensor, scale: int) -> Tensor:
        """Encodes the windows of one scale and averages their features to (B, n * n, D)."""
        resized = F.interpolate(pixels.float(), size=(scale, scale), mode="bicubic").to(pixels.dtype)
        window, grid, count = self.scales[0], self.num_patches_per_side, scale // self.scales[0]
        windows = resized.unfold(2, window, window).unfold(3, window, window)  # (B, C, count, count, window, window)
        windows = windows.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        features = super().compute_features(windows).unflatten(1, (grid, grid)).unflatten(0, (-1, count, count))
        raster = features.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)  # (B, D, count * grid, count * grid)
        return F.interpolate(raster.float(), size=(grid, grid), mode="area").to(raster.dtype).flatten(2).transpose(1, 2)
