"""Loads vision models, and finds their adapter, or the reason why QLIP does not support one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CLIPVisionModel, Dinov2Model, PreTrainedConfig, PreTrainedModel, SiglipVisionModel

from qlip.backbones import open_clip, timm
from qlip.backbones.base import ViTAdapter
from qlip.backbones.transformers import CLIPAdapter, Dinov2Adapter, SiglipAdapter

ADAPTERS: tuple[tuple[type[PreTrainedModel], type[ViTAdapter]], ...] = (
    (CLIPVisionModel, CLIPAdapter),
    (SiglipVisionModel, SiglipAdapter),
    (Dinov2Model, Dinov2Adapter),
)

VISION_MODELS: dict[str, type[PreTrainedModel]] = {
    "clip": CLIPVisionModel,
    "clip_vision_model": CLIPVisionModel,
    "siglip": SiglipVisionModel,
    "siglip_vision_model": SiglipVisionModel,
    "dinov2": Dinov2Model,
}
"""Type of a configuration -> the vision model in its checkpoints."""

OBSTACLES = {
    "QFormer": "its Q-Former turns any image into a fixed number of tokens",
    "Resampler": "its resampler turns any image into a fixed number of tokens",
    "Perceiver": "its resampler turns any image into a fixed number of tokens",
    "Rotary": "the positions of its vision tower are rotary, not a table from which a leaf's could be read",
    "Rope": "the positions of its vision tower are rotary, not a table from which a leaf's could be read",
    "RelativePositionBias": "the positions of its vision tower are biases between the cells of a uniform grid",
}
"""Part of the class name of a module that does not work with leaves -> why."""

TEXT_PARTS = ("language_model", "text_model", "lm_head")
"""Names of parts that process no image."""


def find_adapter(vision_model: nn.Module) -> type[ViTAdapter]:
    """Finds the adapter of a vision model.

    Raises:
        TypeError: the model is not supported; the message says why.
    """
    kind = type(vision_model)
    if not isinstance(vision_model, nn.Module):
        raise TypeError(f"the vision model is a {kind.__name__}; it must be a model, such as from_pretrained returns")
    for known, adapter in ADAPTERS:
        if isinstance(vision_model, known):
            return adapter
    library = next((base.__module__.split(".")[0] for base in kind.__mro__ if base.__name__ == "VisionTransformer"), "")
    if library == "open_clip":
        open_clip.check_fits(vision_model)
        return open_clip.OpenCLIPAdapter
    if library == "timm":
        timm.check_fits(vision_model)
        return timm.TimmAdapter
    known_names = ", ".join(known.__name__ for known, _ in ADAPTERS)
    parts = [name for name, part in vision_model.named_children() if isinstance(part, tuple(VISION_MODELS.values()))]
    takes_text = getattr(vision_model, "main_input_name", None) == "input_ids"
    if parts and (takes_text or kind.__name__.endswith("WithProjection")):  # classifiers average over padding, too
        raise TypeError(f"{kind.__name__} is none of {known_names}, but its part {parts[0]!r} is: give that")
    if takes_text:
        raise TypeError(f"{kind.__name__} is none of {known_names}: it takes text only")
    reason = (
        find_obstacle(vision_model) or "QLIP needs a ViT that it has an adapter for, with a table of absolute positions"
    )
    raise TypeError(f"{kind.__name__} is none of {known_names}: {reason}")


def load_vision_model(path: str, dtype: torch.dtype | None = None) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Loads the vision model of a checkpoint, and its configuration as it is written there.

    Args:
        path: a folder or a hub id, of a vision model or of CLIP or SigLIP as a whole.
        dtype: of the weights; None for the checkpoint's.

    Raises:
        ValueError: it is of another type, or lacks weights or its configuration.
        OSError: there is no such model, or the hub can't be reached.
    """
    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        raise ValueError(f"{path} has no config.json; it must be the folder of a model")
    try:
        config = PreTrainedConfig.get_config_dict(path)[0]
    except OSError as error:
        raise OSError(f"{path}: {error}") from None  # transformers names no model where the hub can't be reached
    if (model_type := config.get("model_type")) not in VISION_MODELS:
        raise ValueError(f"{path} is of type {model_type!r}; allowed are {', '.join(VISION_MODELS)}")
    vision, report = VISION_MODELS[model_type].from_pretrained(path, dtype=dtype, output_loading_info=True)
    if absent := sorted(report["missing_keys"]):
        raise ValueError(f"{path} lacks {len(absent)} weights of its vision tower, such as {absent[0]}")
    return vision, config


def find_obstacle(model: nn.Module) -> str | None:
    """Explains which module prevents leaves from being this model's tokens; None if none does."""
    seen = {
        type(module).__name__
        for name, module in model.named_modules()
        if not any(part in name.split(".") for part in TEXT_PARTS)
    }
    return next((why for part, why in OBSTACLES.items() if any(part in name for name in seen)), None)
