"""What `qlip bias` measures: sizes, shapes, modes and a quadtree's settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qlip.config import QLIPConfig, check_choice, check_count
from qlip.prior.config import Shape

Mode = Literal["bilinear", "bicubic", "mlp", "mlp-pure"]
Convention = Literal["ours", "authors"]
UNIFORM = QLIPConfig.paper(alpha=0.0)
"""The settings of the uniform grid."""

MEASURED = (
    "alpha",
    "criterion",
    "structure_size",
    "noise_floor",
    "seed",
    "max_tokens",
    "split_order",
    "layout",
    "coarsest",
    "geometry",
    "leaf_position",
    "placement",
    "size_bias",
)
"""The settings of a quadtree that E depends on."""


@dataclass(frozen=True)
class BiasConfig:
    """What is measured."""

    sizes: tuple[int, ...] | None = None
    """Shorter sides in pixels, whole cells each; None: the paper's, see `default_sizes`."""

    shapes: tuple[Shape, ...] = ("native", "cropped")
    """Images in their own aspect ratio ("native"), or their central square ("cropped")."""

    modes: tuple[Mode, ...] = ("bilinear", "bicubic")
    """How positions are interpolated; "mlp" is the prior with its residual, "mlp-pure" the paper's form."""

    quadtree: QLIPConfig | None = None
    """Settings of a quadtree to measure besides the uniform grid. Those in `MEASURED` count: `sizes` and `modes`
    replace image size and interpolation, and those of the language model do not reach E."""

    convention: Convention = "ours"
    """What E, P and the reference are: see the module."""

    def __post_init__(self) -> None:
        check_choice("convention", self.convention, Convention)
        for name, choices in (("shapes", Shape), ("modes", Mode)):
            for value in getattr(self, name):
                check_choice(name, value, choices)
        for name in ("sizes", "shapes", "modes"):
            values = getattr(self, name)
            if values is not None and (not values or len(set(values)) < len(values)):
                raise ValueError(f"{name} is {values}; it must hold at least one value, each once")
        for size in self.sizes or ():
            check_count("sizes", size)
        if self.quadtree is not None and self.quadtree.keep_split_cells:
            raise ValueError(
                "keep_split_cells is true, whose split cells have positions that neither measure covers; set it to"
                " false in the quadtree's settings"
            )
