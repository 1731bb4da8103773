"""The QLIP tower: images of any size, cut by their quadtrees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llava.model.config import MultimodalConfig
from llava.model.multimodal_encoder.base import VisionTower
from llava.model.vision.anyres import TileLayout
from llava.model.vision.image_tokens import ImageTokens, stack_features
from llava.model.vision.quadtree_tiles import Cuts, cut_tile_pixels
from qlip import Leaves, QLIPConfig, QLIPImageProcessor, QLIPOutput, QLIPVisionModel
from qlip.decoder_masks import counts_tokens
from qlip.mlp import PRIOR_FILE

ALIBI_SETTINGS = {"llm_positions": "sequential", "llm_size_bias": 0.0, "llm_weight": "each", "budget": "score"}
"""The only values that a language model which counts tokens, as MPT does, can apply."""


def read_settings(flag: bool | Mapping[str, Any] | QLIPConfig | None) -> QLIPConfig | None:
    """Reads the settings that the flag `qlip` means; None for the CLIP tower.

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


def check_counting(config: Any, settings: QLIPConfig) -> None:
    """Checks that a language model can place and weigh image tokens as the settings ask; all but MPT can.

    Raises:
        ValueError: it can't.
    """
    if not counts_tokens(config):
        return
    for name, allowed in ALIBI_SETTINGS.items():
        if (value := getattr(settings, name)) != allowed:
            raise ValueError(
                f"{name} is {value!r}; allowed on MPT, whose attention (ALiBi) counts tokens, takes no bias and has no"
                f" separate queries to read, is {allowed!r}: load it with qlip={ALIBI_SETTINGS}, or write these"
                " settings to 'qlip' in config.json, or load it without QLIP (--no-qlip)"
            )


def check_flag(tower: VisionTower, flag: bool | Mapping[str, Any] | QLIPConfig | None) -> None:
    """Checks that a loaded tower matches the flag `qlip`, except for the path of its prior; None checks nothing.

    Raises:
        ValueError: it is not.
    """
    own = tower.settings.to_dict() if isinstance(tower, QLIPVisionTower) else None
    wanted = read_settings(flag)
    if flag is not None and (own and {**own, "mlp": None}) != (wanted and {**wanted.to_dict(), "mlp": None}):
        raise ValueError(f"qlip is {flag!r}, the model was loaded with {own!r}; give the flag as it is loaded")


class QLIPVisionTower(VisionTower):
    """Runs the same weights as the CLIP tower through `QLIPVisionModel`."""

    def __init__(self, config: MultimodalConfig, settings: QLIPConfig) -> None:
        if config.mm_vision_select_feature != "patch":
            raise ValueError(
                f"mm_vision_select_feature is {config.mm_vision_select_feature!r}; the QLIP tower gives 'patch' only"
            )
        check_counting(config, settings)
        self._settings = settings
        super().__init__(config)

    def _wrap(self, model: PreTrainedModel) -> QLIPVisionModel:
        return QLIPVisionModel(model, self._settings, self.select_layer)

    def _prepare(self, processor: Any) -> QLIPImageProcessor:
        patch_size, native_size = self.config.patch_size, self.config.image_size
        return QLIPImageProcessor.from_clip(processor, patch_size, native_size, self._settings)

    @property
    def settings(self) -> QLIPConfig:
        """How images are cut and positioned."""
        return self._settings

    @settings.setter
    def settings(self, settings: QLIPConfig) -> None:
        """Takes effect with the next image, also in the image processor that callers hold; weights do not change."""
        check_counting(self.llava_config, settings)
        if self.is_loaded:
            self.vision_tower.change_settings(settings)  # first: it may fail to read a prior
            self.image_processor.qlip = settings
        self._settings = settings
        self.llava_config.qlip = settings.to_dict()

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
        """Computes the leaves of one image (C, H, W)."""
        return self.vision_tower.partition(image.to(self.device))

    @torch.compiler.disable  # see `qlip.untraced`
    def cut(self, image: Tensor | Cuts, layout: TileLayout) -> Cuts:
        """Cuts the pixels of one image, whole (C, H, W) or tiles (1 + T, C, S, S); returns leaves as they are."""
        if not isinstance(image, Tensor):
            return image
        pixels = image.to(self.device).float()
        if image.ndim == 4:
            return cut_tile_pixels(pixels, layout, self._settings, self.config.patch_size)
        return self.image_processor.cutter.cut(pixels, self._settings)

    def count_tokens(self, image: Tensor) -> int:
        return self.vision_tower.language_span(self.partition(image)).count

    def count_positions(self, image: Tensor) -> int:
        return self.vision_tower.language_span(self.partition(image)).length

    def _encode_all(self, images: Tensor | Sequence[Any], settings: QLIPConfig | None = None) -> list[ImageTokens]:  # type: ignore[override]
        """Encodes images that are cut already (`CutImage`), too, whole or as a base and tiles."""
        if len(images) == 0 or isinstance(images[0], Tensor):
            return super()._encode_all(images, settings=settings)
        parts = [image if isinstance(image, tuple) else (image,) for image in images]
        if isinstance(images[0], tuple):  # the base is the thumbnail
            settings = replace(settings or self._settings, thumbnail=False)
        cuts = [cut.to(self.device) for part in parts for cut in part]
        tokens = iter(self._tokens(self.vision_tower.encode_cut(cuts, settings=settings), settings))
        return [ImageTokens.join([next(tokens) for _ in part]) for part in parts]

    def encode(self, images: Sequence[Tensor], settings: QLIPConfig | None = None) -> list[ImageTokens]:  # type: ignore[override]
        """Encodes images (C, H, W) on the tower's device, under other settings than its own if any are given."""
        return self._tokens(self.vision_tower(images, settings=settings), settings)

    def feature_select(self, image_forward_outs: QLIPOutput) -> Tensor | list[Tensor]:
        """Selects the features from the vision model's output: (B, N, D), or a list of (N_i, D) if counts differ."""
        return stack_features(self._tokens(image_forward_outs))

    def _tokens(self, output: QLIPOutput, settings: QLIPConfig | None = None) -> list[ImageTokens]:
        check_counting(self.llava_config, settings or self._settings)
        spans = [self.vision_tower.language_span(leaves, settings) for leaves in output.leaves]
        return [ImageTokens(*pair) for pair in zip(output.features, spans, strict=True)]
