"""Builds the vision tower that the flag `qlip` asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llava.image_geometry import is_anyres
from llava.model.anyres import joins_tiles
from llava.model.config import LlavaConfig, MultimodalConfig
from llava.model.multimodal_encoder.base import VisionTower
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_encoder.qlip_encoder import QLIPVisionTower, read_settings


def build_vision_tower(vision_tower_cfg: Any, delay_load: bool = False, **kwargs: Any) -> VisionTower:
    """Builds the QLIP tower if the flag `qlip` is true or an object of settings, else the CLIP tower.

    Args:
        vision_tower_cfg: a configuration of `llava.model`, or another object that names the tower, as LLaVA's
            training arguments do: see `tower_config`.
        delay_load: leave the weights to `load_model`, unless they come with the checkpoint. Other keywords of LLaVA's
            callers are not read.

    Raises:
        ValueError: a setting is wrong, or the model does not go with QLIP.
    """
    config = vision_tower_cfg if isinstance(vision_tower_cfg, MultimodalConfig) else tower_config(vision_tower_cfg)
    settings = read_settings(config.qlip)
    if settings is not None:
        refuse_tiles(config)
    tower = CLIPVisionTower(config) if settings is None else QLIPVisionTower(config, settings)
    if not delay_load:
        tower.load_model()
    return tower


def takes_quadtree(config: MultimodalConfig) -> bool:
    """Whether the quadtree can replace a model's tower: it gives no [CLS], and no tiles (anyres, LLaVA-1.6)."""
    has_tiles = is_anyres(config.image_aspect_ratio) or joins_tiles(config)
    return config.mm_vision_select_feature == "patch" and not has_tiles


def refuse_tiles(config: MultimodalConfig) -> None:
    """Raises ValueError for the quadtree in a model that was trained on tiles."""
    if config.mm_vision_select_feature == "patch" and not takes_quadtree(config):
        raise ValueError(
            "qlip is not available for anyres checkpoints (LLaVA-1.6): image_aspect_ratio is"
            f" {config.image_aspect_ratio!r}, mm_patch_merge_type is {config.mm_patch_merge_type!r}; load it with"
            " qlip=False (--no-qlip)"
        )


def tower_config(args: Any) -> LlavaConfig:
    """Builds the tower's part of a configuration from an object that has `mm_vision_tower` or `vision_tower`.

    `mm_vision_select_layer`, `mm_vision_select_feature` and `qlip` are read if it has them.

    Raises:
        ValueError: it names no tower.
    """
    name = getattr(args, "mm_vision_tower", None) or getattr(args, "vision_tower", None)
    if name is None:
        raise ValueError(f"{type(args).__name__} has neither mm_vision_tower nor vision_tower: there is no tower")
    known = ("mm_vision_select_layer", "mm_vision_select_feature", "qlip")
    return LlavaConfig(mm_vision_tower=str(name), **{key: getattr(args, key) for key in known if hasattr(args, key)})


def override_flag(config: MultimodalConfig, qlip: Any) -> None:
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
