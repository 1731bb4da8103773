"""The CLIP (or SigLIP) tower: square images of one size on a uniform grid."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llava.model.multimodal_encoder.base import VisionTower
from llava.model.vision.image_tokens import ImageTokens
from qlip.language_positions import ImageSpan


def __getattr__(name: str) -> Any:
    """Finds LLaVA's other tower, which its clients look for here."""
    if name == "CLIPVisionTowerS2":
        return import_module("llava.model.multimodal_encoder.s2_encoder").CLIPVisionTowerS2
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class CLIPVisionTower(VisionTower):
    """Runs transformers' vision model unchanged."""

    def _wrap(self, model: PreTrainedModel) -> PreTrainedModel:
        return model

    def _prepare(self, processor: Any) -> Any:
        return processor

    @property
    def native_tokens(self) -> int:
        """Tokens of any image: all have the native size."""
        return self.num_patches + int(self.select_feature == "cls_patch")

    def count_tokens(self, image: Tensor) -> int:
        return self.native_tokens

    def encode(self, images: Sequence[Tensor]) -> list[ImageTokens]:  # type: ignore[override]
        side = self.input_size
        if wrong := [tuple(image.shape[1:]) for image in images if image.shape[1:] != (side, side)]:
            raise ValueError(f"the CLIP tower takes images of {side} x {side} pixels; got {wrong[0]}")
        features = self.compute_features(torch.stack([image.to(self.dtype) for image in images]))
        return [ImageTokens(feature, ImageSpan.sequential(len(feature))) for feature in features]

    def compute_features(self, pixels: Tensor) -> Tensor:
        """Computes the features (B, N, D) of images (B, C, S, S)."""
        return self.feature_select(self.vision_tower(pixels, output_hidden_states=True))

    def feature_select(self, image_forward_outs: Any) -> Tensor:
        """Selects the features (B, N, D) from the vision model's output with `output_hidden_states=True`."""
        states, depth = image_forward_outs.hidden_states, self.config.num_hidden_layers
        # The input of the first layer, then each layer's output: several times in a row where transformers has hooked
        # the layers again, as it does once the language model around the tower is asked for hidden states, attentions.
        copies = (len(states) - 1) // depth
        features = states[self.select_layer % (depth + 1) * copies]
        return features[:, -self.native_tokens :]  # [CLS] comes first
