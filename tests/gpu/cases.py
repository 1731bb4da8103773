"""Settings, logits and errors that the GPU tests share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

TREE = {"criterion": "gradient", "coarsest": "any", "alpha": 0.7, "max_tokens": 90}
BIASED = {**TREE, "llm_size_bias": -0.5, "size_bias": 0.25, "keep_split_cells": True}
GREEDY = {"do_sample": False, "min_new_tokens": 6, "max_new_tokens": 6}


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
