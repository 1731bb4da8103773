"""The adapter of each supported vision model, and why others are not supported."""

from __future__ import annotations

from torch import nn
from transformers import CLIPVisionModel, Dinov2Model, PreTrainedModel, SiglipVisionModel

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

NO_PLACE_FOR_LEAVES = {
    "QFormer": "its Q-Former turns any image into a fixed number of tokens",
    "Resampler": "its resampler turns any image into a fixed number of tokens",
    "Perceiver": "its resampler turns any image into a fixed number of tokens",
    "Rotary": "the positions of its vision tower are rotary, not a table of absolute ones to read a leaf's from",
    "Rope": "the positions of its vision tower are rotary, not a table of absolute ones to read a leaf's from",
    "RelativePositionBias": "the positions of its vision tower are biases between the cells of a uniform grid",
}
"""Part of the class name of a module that does not go with leaves -> why."""

TEXT_PARTS = ("language_model", "text_model", "lm_head")
"""Names of parts that know no picture."""


def find_adapter(vision_model: nn.Module) -> type[ViTAdapter]:
    """Finds the adapter of a vision model.

    Raises:
        TypeError: the model is not supported; the message says why.
    """
    kind = type(vision_model)
    for known, adapter in ADAPTERS:
        if isinstance(vision_model, known):
            return adapter
    library = next((base.__module__.split(".")[0] for base in kind.__mro__ if base.__name__ == "VisionTransformer"), "")
    if library == "open_clip":
        return open_clip.OpenCLIPAdapter
    if library == "timm":
        timm.check_fits(vision_model)
        return timm.TimmAdapter
    known_names = ", ".join(known.__name__ for known, _ in ADAPTERS)
    if getattr(vision_model, "main_input_name", None) == "input_ids":
        raise TypeError(f"{kind.__name__} is none of {known_names}: it takes text alone, and no pictures")
    reason = why_not(vision_model) or "QLIP needs a ViT with a table of absolute positions whose insides it knows"
    raise TypeError(f"{kind.__name__} is none of {known_names}: {reason}")


def why_not(model: nn.Module) -> str | None:
    """Why leaves can't be this model's tokens, told from the modules it is made of; None where nothing speaks so."""
    seen = {
        type(module).__name__
        for name, module in model.named_modules()
        if not any(part in name.split(".") for part in TEXT_PARTS)
    }
    return next((why for part, why in NO_PLACE_FOR_LEAVES.items() if any(part in name for name in seen)), None)
