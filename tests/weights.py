"""Random weights of models that tests compare."""

from __future__ import annotations

from typing import Any

import torch


def randomise(model: Any, scale: float = 0.2, seed: int = 0) -> Any:
    """Weights so large that different inputs give clearly different outputs."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.eval()
