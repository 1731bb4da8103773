"""Tiny random towers and priors, and the native grid's coordinates, for several test files."""

from __future__ import annotations

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

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
