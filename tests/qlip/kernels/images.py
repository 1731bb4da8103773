"""Random images."""

from __future__ import annotations

import numpy as np


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """Draws normal values, float32."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)
