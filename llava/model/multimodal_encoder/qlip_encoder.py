"""The QLIP tower: images of any size, cut by their quadtrees. The only file of llava.model that knows quadtrees."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from llava.model.config import MultimodalConfig
from llava.model.multimodal_encoder.base import ImageTokens, VisionTower, stack_features
from qlip import Leaves, QLIPConfig, QLIPImageProcessor, QLIPOutput, QLIPVisionModel
from qlip.mlp import PRIOR_FILE


def read_settings(flag: bool | Mapping[str, Any] | QLIPConfig | None) -> QLIPConfig | None:
    """The settings that the flag `qlip` stands for; None where it asks for the CLIP tower.

    Raises:
        TypeError: it is neither a bool, an object of settings, nor None.
        ValueError: a setting is unknown or out of range.
    """
    if flag is None or flag is False:
        return None
    if flag is True:
        return QLIPConfig()
    if isinstance(flag, QLIPConfig):
        return flag
    if isinstance(flag, Mapping):
        return QLIPConfig.from_dict(flag)
    raise TypeError(f"qlip is {flag!r}; allowed are true, false, null, an object of QLIP settings and QLIPConfig")


class QLIPVisionTower(VisionTower):
    """Reads the same weights as the CLIP tower through `QLIPVisionModel`."""

    def __init__(self, config: MultimodalConfig, settings: QLIPConfig) -> None:
        if config.mm_vision_select_feature != "patch":
            raise ValueError(
                f"mm_vision_select_feature is {config.mm_vision_select_feature!r}; the QLIP tower gives 'patch' only"
            )
        self._settings = settings
        super().__init__(config)

    def _wrap(self, model: PreTrainedModel) -> QLIPVisionModel:
        return QLIPVisionModel(model, self._settings, self.select_layer)

    def _prepare(self, processor: Any) -> QLIPImageProcessor:
        return QLIPImageProcessor.from_clip(processor, self.config.patch_size, self._settings)

    @property
    def settings(self) -> QLIPConfig:
        """How images are cut and placed."""
        return self._settings

    @settings.setter
    def settings(self, settings: QLIPConfig) -> None:
        """Takes effect with the next image, in the image processor that callers hold too; weights stay as they are."""
        another_prior = settings.mlp != self._settings.mlp
        self._settings = settings
        self.llava_config.qlip = settings.to_dict()
        if self.is_loaded:
            self.vision_tower.qlip = self.image_processor.qlip = settings
            if another_prior or self.vision_tower.prior is None:
                self.vision_tower.load_prior()

    def under(self, settings: QLIPConfig) -> QLIPVisionTower:
        """This tower's weights under other settings, its prior included; the tower itself keeps its own."""
        tower, model = copy.copy(self), copy.copy(self.vision_tower)
        model.qlip = settings
        tower._settings = settings
        tower._modules = {**self._modules, "vision_tower": model}
        tower.image_processor = copy.copy(self.image_processor)
        tower.image_processor.qlip = settings
        for module in (tower, model):  # where accelerate has wrapped them, the wrappers call the originals
            module.__dict__.pop("forward", None)
        return tower

    def load_prior(self, folder: Path) -> None:
        """Reads the MLP prior that the settings name, relative to the checkpoint's folder or absolute."""
        if self._settings.mlp is not None:
            self.settings = replace(self._settings, mlp=str(folder / self._settings.mlp))

    def save_prior(self, folder: Path) -> None:
        """Writes the prior into the folder and names it in the checkpoint's configuration."""
        if self.vision_tower.prior is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self.vision_tower.prior.save(folder / PRIOR_FILE)
            self.llava_config.qlip = replace(self._settings, mlp=PRIOR_FILE).to_dict()

    def partition(self, image: Tensor) -> Leaves:
        """What the tower sees of one image (C, H, W)."""
        return self.vision_tower.partition(image.to(self.device))

    def count_tokens(self, image: Tensor) -> int:
        return len(self.partition(image)) + (self.num_patches if self._settings.thumbnail else 0)

    def count_positions(self, image: Tensor) -> int:
        return self.num_patches if self._settings.llm_positions == "raster" else self.count_tokens(image)

    def _encode_all(self, images: Tensor | Sequence[Any]) -> list[ImageTokens]:
        """Takes images that are cut already, too (`CutImage`)."""
        if len(images) == 0 or isinstance(images[0], Tensor):
            return super()._encode_all(images)
        return self._tokens(self.vision_tower.encode_cut([cut.to(self.device) for cut in images]))

    def encode(self, images: Sequence[Tensor]) -> list[ImageTokens]:
        return self._tokens(self.vision_tower(images))

    def feature_select(self, image_forward_outs: QLIPOutput) -> Tensor | list[Tensor]:
        """The features in what the vision model gives: (B, N, D), or a list of (N_i, D) where counts differ."""
        return stack_features(self._tokens(image_forward_outs))

    def _tokens(self, output: QLIPOutput) -> list[ImageTokens]:
        tokens = []
        for features, leaves in zip(output.features, output.leaves, strict=True):
            place = self.vision_tower.language_span(leaves)
            tokens.append(ImageTokens(features, place.positions, place.span, place.sizes))
        return tokens
