"""The vision modules' part in a training batch that holds no image.

Every process must use the same parameters in each step: DistributedDataParallel waits for their gradients, ZeRO-3 and
FSDP for the processes that gather their shards. And projector-only training needs a loss that depends on the projector.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations import is_deepspeed_zero3_enabled

from llava.model.multimodal_encoder.base import VisionTower
from llava.model.multimodal_encoder.qlip_encoder import QLIPVisionTower


def embed_text(model: Any, input_ids: Tensor, alone: bool) -> Tensor:
    """Embeds text.

    Args:
        model: a `LlavaMetaForCausalLM`.
        input_ids: int64 (..., L).
        alone: whether the text is all of a batch whose loss is computed. No tokens of a blank image are then appended:
            nothing changes but the gradient's path to the vision modules.

    Returns:
        (..., L, D).
    """
    # First, as in a batch with images: under ZeRO-3 all processes gather parameters in the same order.
    nothing = encode_nothing(model) if alone else None
    embeds = model.get_model().embed_tokens(input_ids)
    if nothing is None:
        return embeds
    return torch.cat([embeds, nothing.to(embeds).expand(*embeds.shape[:-2], *nothing.shape)], dim=-2)


def encode_nothing(model: Any) -> Tensor | None:
    """Runs the vision modules that take part in every batch; returns (0, D), or None if there are none."""
    tower, projector = model.get_vision_tower(), getattr(model.get_model(), "mm_projector", None)
    if tower is None or projector is None or not tower.is_loaded:
        return None
    if takes_part(tower):
        nothing = projector(tower.encode_tokens([smallest_image(tower)])[0].features)[:0]
    elif takes_part(projector):
        nothing = projector(tower.dummy_feature)[:0]
    else:
        return None
    newline = getattr(model.get_model(), "image_newline", None)
    return nothing if newline is None else torch.cat([nothing, newline[None, :].to(nothing)[:0]])


def takes_part(module: nn.Module) -> bool:
    """Whether other processes wait for a module: it gets gradients, or its parameters are sharded."""
    trained = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in module.parameters())
    return trained or is_sharded(module)


def is_sharded(module: nn.Module) -> bool:
    """Whether processes hold shards of a module's parameters (ZeRO-3, FSDP), which they gather together to run it."""
    if is_deepspeed_zero3_enabled():
        return True
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return False
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    return any(isinstance(part, (FSDPModule, FullyShardedDataParallel)) for part in module.modules())


def smallest_image(tower: VisionTower) -> Tensor:
    """Builds the blank image (3, S, S) that costs a tower least: one cell, or the only size that CLIP takes."""
    config = tower.config
    side = config.patch_size if isinstance(tower, QLIPVisionTower) else tower.input_size
    return torch.zeros(config.num_channels, side, side, device=tower.device)
