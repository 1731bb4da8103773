"""The authors' InterpolationMLP by its published facts, for several test files: an oracle, apart from `qlip.mlp`.

Inputs are (row, col) in [-1, 1], then for each coordinate all sines and all cosines; the angle of band j, from 0, is
the coordinate times pi j, times pi j. Every linear layer but the last is followed by tanh.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class InterpolationMLP(nn.Module):
    """Its state dict is `layers.N.weight` and `layers.N.bias`, N from 0, and nothing else."""

    def __init__(self, dim: int, hidden: int = 1024, depth: int = 4, bands: int = 48) -> None:
        super().__init__()
        widths = [2 + 4 * bands] + [hidden] * depth + [dim]
        self.bands = bands
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))

    def forward(self, points: Tensor) -> Tensor:
        """(N, 2) -> (N, dim)."""
        features = [points]
        for coordinate in (points[:, :1], points[:, 1:]):
            angles = [coordinate * (math.pi * j) * (math.pi * j) for j in range(self.bands)]
            features += [angle.sin() for angle in angles] + [angle.cos() for angle in angles]
        hidden = torch.cat(features, dim=1)
        for layer in self.layers[:-1]:
            hidden = layer(hidden).tanh()
        return self.layers[-1](hidden)


def make_authors_prior(dim: int, hidden: int = 24, depth: int = 2, bands: int = 5) -> InterpolationMLP:
    torch.manual_seed(11)
    return InterpolationMLP(dim, hidden, depth, bands)
