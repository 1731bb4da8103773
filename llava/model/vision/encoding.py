"""Encodes prepared images, those of the same settings together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from llava.model.multimodal_encoder.qlip_encoder import QLIPVisionTower
from llava.model.vision.image_tokens import ImageTokens
from llava.model.vision.prepared_image import PreparedImage
from llava.model.vision.quadtree_tiles import plan_joining
from qlip.config import QLIPConfig


def encode_prepared(model: Any, images: Sequence[PreparedImage]) -> list[ImageTokens]:
    """Runs a LLaVA model's tower, on images of the same settings together, and its projector.

    Returns:
        One entry per image, in order; of one that awaits a question, what the question is asked about first.
    """
    tower = model.get_vision_tower()
    tokens: dict[int, ImageTokens] = {}
    for kind in dict.fromkeys(map(_kind, images)):
        group = [i for i, image in enumerate(images) if _kind(image) == kind]
        options = {"settings": kind[0]} if isinstance(tower, QLIPVisionTower) else {}
        encoded = tower.encode_tokens([images[i].image for i in group], **options)
        tokens.update(zip(group, encoded, strict=True))
    for i, image in enumerate(images):
        if image.tiles is not None:
            n = tower.num_patches_per_side
            joining = image.order or plan_joining(image.image, image.tiles, image.settings, n)
            tokens[i] = tokens[i].with_tiles(joining)
    return model.project([tokens[i] for i in range(len(images))]) if images else []


def _kind(image: PreparedImage) -> tuple[QLIPConfig | None, bool]:
    """Computes what images must share to be encoded together; a request's settings may equal those of CLIP's view."""
    return image.settings, isinstance(image.image, Tensor)
