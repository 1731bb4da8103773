"""Which parameters are trained, and in which dtypes they are held."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from llava.model.language_model.common import ImageLanguageModel
from llava.model.multimodal_encoder.base import VisionTower
from llava.train.arguments import ParsedArguments, TrainingArguments


def choose_parameters(model: ImageLanguageModel, args: ParsedArguments) -> None:
    """Freezes and unfreezes parameters as the flags say; adapters stay trainable."""
    trunk, tower = model.get_model(), model.get_vision_tower()
    if args.model.freeze_backbone and not args.training.lora_enable:
        trunk.requires_grad_(False)
    if args.model.tune_mm_mlp_adapter:
        model.requires_grad_(False)
        if model.config.mm_use_im_start_end:
            model.get_input_embeddings().requires_grad_(True)
    if tower is None:
        return
    trunk.mm_projector.requires_grad_(not args.training.freeze_mm_mlp_adapter)
    if (newline := getattr(trunk, "image_newline", None)) is not None:
        newline.requires_grad_(not args.training.freeze_mm_mlp_adapter)
    tower.requires_grad_(False)
    if args.model.unfreeze_mm_vision_tower:
        unfreeze(tower)


def unfreeze(tower: VisionTower) -> None:
    """Makes a tower trainable, except for what comes after the layer that is read: it would never get a gradient."""
    tower.requires_grad_(True)
    depth = tower.config.num_hidden_layers
    read = tower.select_layer if tower.select_layer >= 0 else depth + 1 + tower.select_layer
    for name, parameter in tower.named_parameters():
        _, found, layer = name.partition("encoder.layers.")
        is_later = bool(found) and int(layer.partition(".")[0]) >= read
        if is_later or "post_layernorm" in name or ".head." in name:
            parameter.requires_grad_(False)


EXACT_PARTS = ("mm_projector", "image_newline")
"""Parts of names that are never rounded without DeepSpeed: a checkpoint holds them even where they are frozen."""


def list_exact_parts(args: ParsedArguments, has_marks: bool) -> list[str]:
    """Lists parts of the names of weights that are loaded in float32 above a frozen language model.

    What is trained begins with the values of the file, not with their bfloat16; only frozen weights are rounded.

    Args:
        args: the command line.
        has_marks: whether <im_start> and <im_end> are used, by a flag or by the checkpoint.
    """
    model, training = args.model, args.training
    parts = list(EXACT_PARTS)
    if model.unfreeze_mm_vision_tower:
        parts.append("vision_tower")
    if model.tune_mm_mlp_adapter:
        return [*parts, "embed_tokens"] if has_marks else parts
    if training.lora_enable:
        return parts if training.lora_bias == "none" else [*parts, "bias"]
    return [*parts, "lm_head"]


@contextmanager
def loading_in_float32(model_class: Any, parts: Sequence[str]) -> Iterator[None]:
    """Lets transformers load weights in float32 whose names hold one of some parts, whatever the model's dtype."""
    with_own = "_keep_in_fp32_modules_strict" in vars(model_class)
    before = model_class._keep_in_fp32_modules_strict
    model_class._keep_in_fp32_modules_strict = [*(before or ()), *parts]
    try:
        yield
    finally:
        if with_own:
            model_class._keep_in_fp32_modules_strict = before
        else:
            del model_class._keep_in_fp32_modules_strict


def set_dtypes(model: ImageLanguageModel, training: TrainingArguments) -> None:
    """Converts trained weights to float32, which small updates need, and frozen ones to the products' dtype.

    The projector is float32 where it is frozen, too: its file is written again, and it is small.

    A tower that is trained is float32 throughout: norms after the layer that is read would otherwise get inputs of
    another dtype, which CPUs refuse. DeepSpeed holds float32 copies itself, so that all weights have the products'
    dtype; FSDP shards weights of one dtype only, float32. The norms of a quantised model are float32.
    """
    if is_fsdp(training):
        return
    compute, masters = training.compute_dtype, not is_deepspeed(training)
    trained = {
        weight
        for name, weight in model.named_parameters()
        if weight.requires_grad or any(part in name for part in EXACT_PARTS)
    }
    if (tower := model.get_vision_tower()) is not None and trained & (own := set(tower.parameters())):
        trained |= own
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.float32 if parameter in trained and masters else compute)
    if training.bits != 16:
        for name, module in model.named_modules():
            if "norm" in name.rpartition(".")[2] and "vision_tower" not in name:
                module.float()


def is_deepspeed(training: TrainingArguments) -> bool:
    """Whether DeepSpeed trains, by its flag or by accelerate's configuration."""
    return training.deepspeed_plugin is not None


def is_fsdp(training: TrainingArguments) -> bool:
    """Whether FSDP shards the model, by its flag or by accelerate's configuration."""
    return bool(training.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")
