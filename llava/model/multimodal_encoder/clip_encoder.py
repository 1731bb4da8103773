"""The CLIP (or SigLIP) tower: a uniform grid of square images of one size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llava.model.multimodal_encoder.base import ImageTokens, VisionTower


class CLIPVisionTower(VisionTower):
    """Reads transformers' vision model as it is."""

    def _wrap(self, model: PreTrainedModel) -> PreTrainedModel:
        return model

    def _prepare(self, processor: Any) -> Any:
        return processor

    def count_tokens(self, image: Tensor) -> int:
        keeps_cls = self.select_feature == "cls_patch" and self.config.model_type == "clip_vision_model"
        return self.num_patches + int(keeps_cls)

    def encode(self, images: Sequence[Tensor]) -> list[ImageTokens]:
        side = self.config.image_size
        if wrong := [tuple(image.shape[1:]) for image in images if image.shape[1:] != (side, side)]:
            raise ValueError(f"the CLIP tower takes images of {side} x {side} pixels; it was given {wrong[0]}")
        output = self.vision_tower(torch.stack([image.to(self.dtype) for image in images]), output_hidden_states=True)
        return [ImageTokens(feature, None, len(feature), None) for feature in self.feature_select(output)]

    def feature_select(self, image_forward_outs: Any) -> Tensor:
        """The features (B, N, D) in what the vision model gives with `output_hidden_states=True`."""
        features = image_forward_outs.hidden_states[self.select_layer]
        return features[:, -self.count_tokens(features) :]  # [CLS] comes first
