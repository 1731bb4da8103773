"""Builds the vision tower that the flag `qlip` asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llava.model.config import LlavaConfig, MultimodalConfig
from llava.model.multimodal_encoder.base import VisionTower
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_encoder.qlip_encoder import QLIPVisionTower, check_counting, read_settings
from llava.model.multimodal_encoder.s2_encoder import CLIPVisionTowerS2, read_scales
from llava.model.vision.quadtree_tiles import check_quadtree, has_tiles, takes_leaves


def build_vision_tower(vision_tower_cfg: Any, delay_load: bool = False, **kwargs: Any) -> VisionTower:
    """Builds the QLIP tower if the flag `qlip` is true or an object of settings, else the CLIP tower, at several scales
    if `s2` is true.

    Args:
        vision_tower_cfg: a configuration of `llava.model`, or another object that names the tower, as LLaVA's
            training arguments do: see `tower_config`.
        delay_load: leave the weights to `load_model`, unless they come with the checkpoint. Other keywords of LLaVA's
            callers are not read.

    Raises:
        ValueError: a setting is wrong, the model does not go with QLIP, or QLIP with S2.
    """
    config = vision_tower_cfg if isinstance(vision_tower_cfg, MultimodalConfig) else tower_config(vision_tower_cfg)
    settings = read_settings(config.qlip)
    scales = check_scales(config)
    tower: VisionTower
    if settings is not None:
        check_quadtree(config, settings)
        tower = QLIPVisionTower(config, settings)
    else:
        tower = CLIPVisionTower(config) if scales is None else CLIPVisionTowerS2(config, scales)
    if not delay_load:
        tower.load_model()
    return tower


def takes_quadtree(config: MultimodalConfig) -> bool:
    """Whether the quadtree can replace a model's tower: it gives no [CLS], no scales (S2), and joins tiles one way."""
    has_patches = config.mm_vision_select_feature == "patch" and not config.s2
    return has_patches and (takes_leaves(config) or not has_tiles(config))


def tower_config(args: Any) -> LlavaConfig:
    """Builds the tower's part of a configuration from an object that has `mm_vision_tower` or `vision_tower`.

    `mm_vision_select_layer`, `mm_vision_select_feature`, `s2`, `s2_scales` and `qlip` are read if it has them.

    Raises:
        ValueError: it names no tower.
    """
    name = getattr(args, "mm_vision_tower", None) or getattr(args, "vision_tower", None)
    if name is None:
        raise ValueError(f"{type(args).__name__} has neither mm_vision_tower nor vision_tower: there is no tower")
    known = ("mm_vision_select_layer", "mm_vision_select_feature", "s2", "s2_scales", "qlip")
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
    check_scales(config)  # fail here, before any weight is read
    if (asked := read_settings(config.qlip)) is not None:
        check_counting(config, asked)


def check_scales(config: MultimodalConfig) -> tuple[int, ...] | None:
    """Reads the scales of S2; None for one scale.

    Raises:
        ValueError: a setting is wrong, or S2 is combined with QLIP or with tiles.
    """
    scales = read_scales(config)
    if scales is not None and has_tiles(config):
        raise ValueError(
            f"s2 and tiles are both on: image_aspect_ratio is {config.image_aspect_ratio!r}, mm_patch_merge_type is"
            f" {config.mm_patch_merge_type!r}; allowed with s2 are 'pad' and 'flat'"
        )
    if read_settings(config.qlip) is not None and scales is not None:
        raise ValueError(
            "s2 and qlip are both on: the projector of an S2 checkpoint takes an image's features at several scales,"
            " which a quadtree's leaf does not have; load it without QLIP (--no-qlip)"
        )
    return scales
