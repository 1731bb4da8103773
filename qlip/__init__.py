"""QLIP: a content-aware quadtree in place of CLIP's uniform grid, without retraining (arXiv 2505.23004).

Importing the package loads nothing heavy; a name's module is loaded when the name is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qlip.config import QLIPConfig
    from qlip.encoder import QLIPVisionModel
    from qlip.image_processing import QLIPImageProcessor
    from qlip.integrations.attach import attach, detach
    from qlip.integrations.question import process_for_question
    from qlip.integrations.vllm import vllm_image_embeds
    from qlip.language_positions import key_bias
    from qlip.mlp import CoordinateMLP
    from qlip.outputs import QLIPOutput
    from qlip.packing import PACKED_NAMES
    from qlip.patches import extract_patches
    from qlip.positions import interpolate_positions, raster_positions
    from qlip.quadtree import Leaves, partition
    from qlip.tools.draw import draw_leaves
    from qlip.tools.heat import draw_weights

__version__ = "1.0.0"

__all__ = [
    "PACKED_NAMES",
    "CoordinateMLP",
    "Leaves",
    "QLIPConfig",
    "QLIPImageProcessor",
    "QLIPOutput",
    "QLIPVisionModel",
    "attach",
    "detach",
    "draw_leaves",
    "draw_weights",
    "extract_patches",
    "interpolate_positions",
    "key_bias",
    "partition",
    "process_for_question",
    "raster_positions",
    "vllm_image_embeds",
]

_MODULES = {
    "PACKED_NAMES": "qlip.packing",
    "CoordinateMLP": "qlip.mlp",
    "Leaves": "qlip.quadtree",
    "QLIPConfig": "qlip.config",
    "QLIPImageProcessor": "qlip.image_processing",
    "QLIPOutput": "qlip.outputs",
    "QLIPVisionModel": "qlip.encoder",
    "attach": "qlip.integrations.attach",
    "detach": "qlip.integrations.attach",
    "draw_leaves": "qlip.tools.draw",
    "draw_weights": "qlip.tools.heat",
    "extract_patches": "qlip.patches",
    "interpolate_positions": "qlip.positions",
    "key_bias": "qlip.language_positions",
    "partition": "qlip.quadtree",
    "process_for_question": "qlip.integrations.question",
    "raster_positions": "qlip.positions",
    "vllm_image_embeds": "qlip.integrations.vllm",
}


def __getattr__(name: str) -> Any:
    """Loads a public name's module."""
    if name not in _MODULES:
        raise AttributeError(f"module 'qlip' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
