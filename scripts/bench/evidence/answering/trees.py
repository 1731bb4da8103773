"""Settings of quadtrees that several experiments share. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import qlip.config

GRID = {"geometry": "grid"}
"""Pictures of any size in cells, as the rivals take them."""
UNIFORM = {"alpha": 0.0, "max_tokens": None, **GRID}
IN_GRID: Mapping[str, Any] = {"geometry": "grid", "leaf_position": "centre", "noise_floor": False}
"""Trees of the image's own pixels, as in the paper."""
NATIVE: Mapping[str, object] = {"geometry": "native", "leaf_position": "native", "noise_floor": True}
"""Trees of CLIP's own cells."""
STRUCTURE: Mapping[str, Any] = {"criterion": "structure", "structure_size": 5}
"""The criterion that was the default until 30 November 2026, in which most tables were measured; see "objects"."""
BY_SCORE: Mapping[str, Any] = {"split_order": "score"}
"""The order of splits before it was "side", in which the tables were measured where a budget binds; see "order"."""
STRUCTURE_BY_SCORE: Mapping[str, Any] = {**STRUCTURE, **BY_SCORE}
PAPER: Mapping[str, object] = {
    name: qlip.config.PAPER[name] for name in ("criterion", "coarsest", "geometry", "leaf_position", "llm_size_bias")
}
"""The paper's rule, but with raster positions in the language model."""
