"""QLIP: a content-aware quadtree in place of CLIP's uniform grid, without retraining (arXiv 2505.23004)."""

from qlip.attach import attach, detach
from qlip.config import QLIPConfig
from qlip.draw import draw_leaves
from qlip.encoder import QLIPOutput, QLIPVisionModel
from qlip.image_processing import QLIPImageProcessor
from qlip.mlp import CoordinateMLP
from qlip.packing import PACKED_NAMES
from qlip.patches import extract_patches
from qlip.placement import key_bias
from qlip.positions import interpolate_positions, raster_positions
from qlip.quadtree import Leaves, partition
from qlip.vllm import vllm_image_embeds

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
    "extract_patches",
    "interpolate_positions",
    "key_bias",
    "partition",
    "raster_positions",
    "vllm_image_embeds",
]
