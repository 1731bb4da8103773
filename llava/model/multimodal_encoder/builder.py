"""Chooses the vision tower by the flag `qlip`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llava.model.config import LlavaConfig
from llava.model.multimodal_encoder.base import VisionTower
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_encoder.qlip_encoder import QLIPVisionTower, read_settings


def build_vision_tower(config: LlavaConfig) -> VisionTower:
    """QLIP where `config.qlip` is true or an object of settings, else CLIP."""
    settings = read_settings(config.qlip)
    return CLIPVisionTower(config) if settings is None else QLIPVisionTower(config, settings)


def override_flag(config: LlavaConfig, qlip: Any) -> None:
    """Replaces the checkpoint's flag by the caller's.

    Args:
        config: changed in place.
        qlip: None keeps the checkpoint's flag; False is the CLIP tower; True is QLIP with the checkpoint's settings
            where it has any; a dict is laid over those; a QLIPConfig replaces them.
    """
    own = config.qlip if isinstance(config.qlip, Mapping) else {}
    if qlip is None:
        return
    if qlip is True:
        config.qlip = dict(own) or True
    elif isinstance(qlip, Mapping):
        config.qlip = {**own, **qlip}
    else:
        settings = read_settings(qlip)
        config.qlip = False if settings is None else settings.to_dict()
    read_settings(config.qlip)  # fail here, before any weight is read
