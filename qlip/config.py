"""The settings of QLIP, validated where they are made. Knows nothing of images, models or files."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

Criterion = Literal["gradient", "structure", "variance", "diagonal", "random"]
Layout = Literal["aligned", "centered"]
Interpolation = Literal["bilinear", "bicubic", "mlp"]
LeafPosition = Literal["centre", "mean"]
Coarsest = Literal["any", "native"]
LLMPositions = Literal["raster", "sequential"]
LLMWeight = Literal["each", "native"]


def check_choice(name: str, value: object, choices: Any) -> None:
    """Raises ValueError unless `value` is one of the strings of the Literal type `choices`."""
    allowed = get_args(choices)
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed are {', '.join(map(repr, allowed))}")


@dataclass(frozen=True)
class QLIPConfig:
    """How an image is cut into tokens and where the tokens are placed.

    The defaults need no sweep: of the candidates in docs/RESULTS.md they come nearest to the best over all object sizes
    and kinds of question, with at most one and a half times CLIP's tokens on average, on validation scenes of the
    embedded model. They were frozen before the test scenes were looked at. The paper's rule is
    `QLIPConfig(criterion="gradient", coarsest="any", alpha=0.1, llm_size_bias=0.0)`, with alpha swept for each task.
    """

    alpha: float = 0.8
    """Split threshold on the score of a block, >= 0. 0 is the uniform grid, infinity the coarsest tree.

    0.8, in units of CLIP's normalised pixels, is a contrast of about a fifth of the range from black to white."""

    criterion: Criterion = "structure"
    """What scores a block (`qlip.criteria`). "structure" (ours) leaves large objects whole, which "gradient", the
    paper's, cuts along their edges; both do as well on small ones."""

    max_tokens: int | None = 1152
    """Budget: the most leaves an image may have; None is no bound. The thumbnail's tokens come on top.

    1152 is twice CLIP-L's 576; few images use it up, so the mean stays below one and a half times."""

    layout: Layout = "aligned"
    """Where the coarsest blocks lie: tiled from the top-left corner, or centred as in the authors' code."""

    image_size: int | None = None
    """Shorter side, in pixels, that images are resized to; None keeps the native resolution."""

    interpolation: Interpolation = "bicubic"
    """How position embeddings are read between the points of the pretrained table."""

    mlp: str | None = None
    """Path of the MLP prior's weights; needed by, and only read for, interpolation="mlp"."""

    mlp_residual: bool = True
    """Add the interpolated residual (table - prior), so that the native grid is exact; False is the paper's form."""

    leaf_position: LeafPosition = "centre"
    """A leaf's position is that of its centre, or the mean over its cells."""

    coarsest: Coarsest = "native"
    """"native": no leaf covers more than one cell of the tower's native grid, so that nothing is seen coarser than CLIP
    sees it, as far as the budget allows: keeps counting and large objects; "any": the paper's roots, fewer tokens."""

    structure_size: int = 5
    """Window of criterion "structure", in sampled pixels; odd, >= 3. Narrower structure makes a block split."""

    thumbnail: bool = False
    """Put the image downsized to the tower's native size, as CLIP sees it, before the leaves. Within the same number of
    tokens the leaves alone do better."""

    llm_positions: LLMPositions = "raster"
    """Positions in the language model: places on the native raster, or the usual running count."""

    size_bias: float = 0.0
    """s: add s * log(cells of the leaf) to the attention logits of a leaf's key in the tower. 0 is off."""

    llm_size_bias: float = -0.25
    """The same in the language model. Below 0 small leaves, where the detail is, weigh more than the large ones around
    them: without it a few small objects among many tokens are counted too low. Nothing where all leaves are one cell.
    Needs the attention "sdpa" or "eager"; 0 goes with any."""

    llm_weight: LLMWeight = "each"
    """How much an image weighs in the language model's attention: "each" token counts one, so more tokens drown the
    text; "native" shifts their logits by one number so that together they weigh the native n * n tokens."""

    seed: int = 0
    """Seed of criterion "random"."""

    max_cells: int = 16384
    """Bound on the cells of an image's grid; larger images are resized to fit. 16384 cells of 14 px: 1792 x 1792 px."""

    def __post_init__(self) -> None:
        check_choice("criterion", self.criterion, Criterion)
        check_choice("layout", self.layout, Layout)
        check_choice("interpolation", self.interpolation, Interpolation)
        check_choice("leaf_position", self.leaf_position, LeafPosition)
        check_choice("coarsest", self.coarsest, Coarsest)
        check_choice("llm_positions", self.llm_positions, LLMPositions)
        check_choice("llm_weight", self.llm_weight, LLMWeight)
        check_threshold(self.alpha)
        for name in ("mlp_residual", "thumbnail"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} is {getattr(self, name)!r}; it must be true or false")
        for name in ("max_tokens", "image_size"):
            if (value := getattr(self, name)) is not None:
                check_count(name, value)
        check_count("max_cells", self.max_cells)
        check_window(self.structure_size)
        for name in ("size_bias", "llm_size_bias"):
            value = getattr(self, name)
            if not is_number(value) or not math.isfinite(value):
                raise ValueError(f"{name} is {value!r}; it must be a finite number")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise TypeError(f"seed is {self.seed!r}; it must be an integer")
        if not isinstance(self.mlp, (str, os.PathLike, type(None))):
            raise TypeError(f"mlp is {self.mlp!r}; it must be the path of a file, or None")
        if self.interpolation == "mlp" and self.mlp is None:
            raise ValueError("interpolation is 'mlp' but mlp is None; give the path of the prior's weights")

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-ready values; an infinite alpha becomes the string "inf"."""
        values = asdict(self)
        if math.isinf(self.alpha):
            values["alpha"] = "inf"
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> QLIPConfig:
        """The inverse of `to_dict`; fields left out take their defaults.

        Raises:
            ValueError: a key is no field, or a value is out of range.
        """
        allowed = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - allowed):
            raise ValueError(f"unknown QLIP setting {', '.join(unknown)}; allowed are {', '.join(sorted(allowed))}")
        if isinstance(values.get("alpha"), str):
            with suppress(ValueError):  # what is no number is refused below, by name
                values = {**values, "alpha": float(values["alpha"])}
        return cls(**values)


def check_threshold(alpha: float) -> None:
    """Raises ValueError unless `alpha` is a number >= 0 (infinity included)."""
    if not is_number(alpha) or not alpha >= 0:
        raise ValueError(f"alpha is {alpha!r}; it must be >= 0 (0 is the uniform grid, infinity the coarsest tree)")


def is_number(value: object) -> bool:
    """Whether a value is a number; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_count(name: str, value: int) -> None:
    """Raises unless `value` is a positive integer."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; it must be an integer")
    if value < 1:
        raise ValueError(f"{name} is {value}; it must be at least 1")


def check_window(size: int) -> None:
    """Raises unless `size` is an odd integer >= 3."""
    check_count("structure_size", size)
    if size < 3 or size % 2 == 0:
        raise ValueError(f"structure_size is {size}; it must be odd and at least 3")
