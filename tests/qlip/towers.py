"""Tiny random towers and priors, and the native grid's coordinates, for several test files."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from qlip import CoordinateMLP

WIDTH, PATCH, NATIVE = 32, 14, 56
SHAPE = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": NATIVE,
    "patch_size": PATCH,
}
CLASSES = {"clip": (CLIPVisionConfig, CLIPVisionModel), "siglip": (SiglipVisionConfig, SiglipVisionModel)}


TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9}
PROJECTED = 24


def make_clip(image_size: int = NATIVE) -> CLIPModel:
    """The CLIP tower with a text model and projections around it."""
    vision = {**SHAPE, "image_size": image_size, "projection_dim": PROJECTED}
    model = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=vision, projection_dim=PROJECTED)).eval()
    model.vision_model.load_state_dict(make_tower("clip", image_size).state_dict())
    with torch.no_grad():
        drawn = torch.randn(PROJECTED, WIDTH, generator=torch.Generator().manual_seed(5))
        model.visual_projection.weight.copy_(drawn)
    return model


def make_tower(kind: str, image_size: int = NATIVE):
    settings, model = CLASSES[kind]
    tower = model(settings(**{**SHAPE, "image_size": image_size})).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return tower


def weights(prior: CoordinateMLP) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in prior.parameters()])


def coordinates(rows: int, cols: int) -> torch.Tensor:
    """(rows * cols, 2): the grid's points, corner to corner over [-1, 1]."""
    axes = (torch.linspace(-1, 1, rows), torch.linspace(-1, 1, cols))
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 2)


def save_towers(folder: Path) -> None:
    """Writes a checkpoint for each of `CLASSES`, and "whole", a CLIP with its projections."""
    for name in (*CLASSES, "whole"):
        (make_clip() if name == "whole" else make_tower(name)).save_pretrained(folder / name)
        CLIPImageProcessor(size={"shortest_edge": NATIVE}, crop_size=NATIVE).save_pretrained(folder / name)
