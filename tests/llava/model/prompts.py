"""Prompts and images of a batch, for the tests of generation on CPUs and GPUs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from llava.constants import IMAGE_TOKEN_INDEX as IMAGE

ROWS = [[1, 20, IMAGE, 30], [1, IMAGE, 40, 41, 42, IMAGE, 43], [1, 50, 51, 52, 53, 54], [1, 60, IMAGE, 61, 62]]


def picture(height: int, width: int, seed: int) -> Tensor:
    """A smooth image, float32 (3, height, width), whose tree has leaves of several sizes."""
    noise = torch.randn(1, 3, height // 14, width // 14, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, (height, width), mode="bicubic")[0]


IMAGES = [picture(112, 112, 0), picture(224, 140, 1), picture(112, 336, 2), picture(280, 280, 3)]


def images_of(rows: list[list[int]]) -> list[list[Tensor]]:
    """IMAGES given in order to the placeholders of each row."""
    left = iter(IMAGES)
    return [[next(left) for i in row if i == IMAGE] for row in rows]
