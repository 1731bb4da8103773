"""Which anatomy a vision model has, and why leaves can't stand in others. Knows models by their classes alone."""

from __future__ import annotations

from torch import nn
from transformers import CLIPVisionModel, Dinov2Model, PreTrainedModel, SiglipVisionModel

from qlip.anatomy import Anatomy, CLIPAnatomy, Dinov2Anatomy, SiglipAnatomy
from qlip.foreign import foreign_anatomy

ANATOMIES: tuple[tuple[type[PreTrainedModel], type[Anatomy]], ...] = (
    (CLIPVisionModel, CLIPAnatomy),
    (SiglipVisionModel, SiglipAnatomy),
    (Dinov2Model, Dinov2Anatomy),
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


def anatomy_of(vision_model: nn.Module) -> type[Anatomy]:
    """Where the parts of a vision model are.

    Raises:
        TypeError: QLIP can't stand in it, or does not know it.
    """
    for known, anatomy in ANATOMIES:
        if isinstance(vision_model, known):
            return anatomy
    if (foreign := foreign_anatomy(vision_model)) is not None:
        return foreign
    known_names = ", ".join(known.__name__ for known, _ in ANATOMIES)
    if getattr(vision_model, "main_input_name", None) == "input_ids":
        raise TypeError(f"{type(vision_model).__name__} is none of {known_names}: it takes text alone, and no pictures")
    reason = why_not(vision_model) or "QLIP needs a ViT with a table of absolute positions whose insides it knows"
    raise TypeError(f"{type(vision_model).__name__} is none of {known_names}: {reason}")


def why_not(model: nn.Module) -> str | None:
    """Why leaves can't be this model's tokens, told from the modules it is made of; None where nothing speaks so."""
    seen = {
        type(module).__name__
        for name, module in model.named_modules()
        if not any(part in name.split(".") for part in TEXT_PARTS)
    }
    return next((why for part, why in NO_PLACE_FOR_LEAVES.items() if any(part in name for name in seen)), None)
