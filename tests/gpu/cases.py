"""Prompts, images and errors that the GPU tests share."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llava.constants import IMAGE_TOKEN_INDEX as IMAGE

TREE = {"criterion": "gradient", "coarsest": "any", "alpha": 0.7, "max_tokens": 90}
BIASED = {**TREE, "llm_size_bias": -0.5, "size_bias": 0.25}
ROWS = [[1, 20, IMAGE, 30], [1, IMAGE, 40, 41, 42, IMAGE, 43], [1, 50, 51, 52, 53, 54], [1, 60, IMAGE, 61, 62]]
GREEDY = {"do_sample": False, "min_new_tokens": 6, "max_new_tokens": 6}


def picture(height: int, width: int, seed: int) -> Tensor:
    """A smooth image, float32 (3, height, width), whose tree has leaves of several sizes."""
    noise = torch.randn(1, 3, height // 14, width // 14, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, (height, width), mode="bicubic")[0]


IMAGES = [picture(112, 112, 0), picture(224, 140, 1), picture(112, 336, 2), picture(280, 280, 3)]


def images_of(rows: list[list[int]]) -> list[list[Tensor]]:
    """IMAGES given in order to the placeholders of each row."""
    left = iter(IMAGES)
    return [[next(left) for i in row if i == IMAGE] for row in rows]


def pad_left(rows: list[list[int]], device: str) -> tuple[Tensor, Tensor]:
    """Prompts (B, L) and their mask."""
    ids = [torch.tensor(row) for row in rows]
    real = [torch.ones_like(row) for row in ids]
    first, second = (torch.nn.utils.rnn.pad_sequence(part, True, 0, "left").to(device) for part in (ids, real))
    return first, second


@torch.no_grad()
def logits_of(model: Any, row: list[int], images: list[Tensor]) -> Tensor:
    """Logits (L, V) of one prompt alone, float32 on the CPU."""
    device = model.get_input_embeddings().weight.device
    found = model(torch.tensor([row], device=device), images=[image.to(device) for image in images] or None)
    return found.logits[0].float().cpu()


def error(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference, as a share of the norm of what is expected."""
    found, expected = found.detach().float().cpu(), expected.detach().float().cpu()
    return float((found - expected).norm() / expected.norm())
