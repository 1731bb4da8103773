"""The settings of QLIP, checked when they are made. Needs the standard library only."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from functools import cache
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any, Literal, get_args, get_origin, get_type_hints

Criterion = Literal["gradient", "structure", "objects", "variance", "diagonal", "random"]
Layout = Literal["aligned", "centered"]
Interpolation = Literal["bilinear", "bicubic", "mlp"]
LeafPosition = Literal["centre", "native", "cell", "mean"]
Geometry = Literal["grid", "native"]
Placement = Literal["whole", "padded"]
Coarsest = Literal["any", "native"]
Budget = Literal["score", "question"]
SplitOrder = Literal["side", "score"]
Tiling = Literal["image", "tiles"]
LLMPositions = Literal["raster", "sequential"]
LLMWeight = Literal["each", "native"]

STRONGEST_BIAS = 4.0
"""Largest absolute size bias; beyond it the weights of a long image's leaves may overflow float32."""

PAPER: Mapping[str, Any] = MappingProxyType(
    {
        "alpha": 0.1,
        "criterion": "gradient",
        "max_tokens": None,
        "split_order": "score",
        "geometry": "grid",
        "leaf_position": "centre",
        "coarsest": "any",
        "noise_floor": False,
        "llm_positions": "sequential",
        "llm_size_bias": 0.0,
    }
)
"""The paper's settings that differ from the defaults; alpha is one of the values the paper sweeps."""


def check_choice(name: str, value: object, choices: Any) -> None:
    """Raises ValueError unless `value` is one of the strings of the Literal type `choices`."""
    allowed = get_args(choices)
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed are {', '.join(map(repr, allowed))}")


@cache
def list_choices(kind: type) -> dict[str, Any]:
    """Lists the fields of a class of settings that are one of several words, with their Literal types."""
    return {name: hint for name, hint in get_type_hints(kind).items() if get_origin(hint) is Literal}


@dataclass(frozen=True)
class QLIPConfig:
    """How an image is cut into tokens and where the tokens are placed.

    The defaults need no sweep: of the candidates in docs/RESULTS.md that take at most one and a half times CLIP's
    tokens on photographs, they answer best over all sets of validation scenes and kinds of question. `split_order`
    (docs/results/order.md) and `criterion` with its window (docs/results/objects.md) were chosen later than the others,
    on validation scenes as well. `QLIPConfig.paper()` has the paper's rule.
    """

    alpha: float = 0.8
    """Split threshold on the score of a block, >= 0. 0 is the uniform grid, infinity the coarsest tree.

    0.8, in units of CLIP's normalised pixels, is a contrast of about a fifth of the range from black to white."""

    criterion: Criterion = "objects"
    """What scores a block (`qlip.scores.criteria`): "objects" (ours) what is too small for the sampling as a whole,
    "structure" also corners and thin parts of large objects, "gradient", the paper's, all edges."""

    max_tokens: int | None = 1152
    """Budget: the most leaves an image may have; None: no bound. The thumbnail's tokens are extra.
    1152 is twice CLIP-L's 576; few images need all of it, so the mean stays below one and a half times."""

    split_order: SplitOrder = "side"
    """Which blocks split while the budget lasts: those of the highest "score", or of the highest score times their
    "side", so that more places are seen twice as fine before one is seen four times as fine. "side" answers better
    on average, most in large pictures; "score" about objects below 12 pixels, and small signs, where photographs use up
    the budget (docs/results/order.md)."""

    budget: Budget = "score"
    """What decides where tokens are spent: the blocks' own "score", or the "question", which is asked about the unsplit
    image first; what it attends to is then split, as far as alpha asks (`qlip.question`). Without a question (the tower
    alone, training) the score decides."""

    score_share: float = 0.15
    """With budget "question": how many tokens the scores may add to the unsplit image before the question does, as a
    share of it. Counting and listing need all objects, and the question misses what the unsplit image does not show."""

    question_share: float = 0.15
    """How many tokens the question may add, as a share of the unsplit image's; it also gets those that the scores left
    of their share. With both at 0.15, 1.3 times CLIP's tokens answer as well as 1.9 times do by the scores alone about
    objects of 16 pixels and more, and worse about smaller ones (docs/results/question.md)."""

    geometry: Geometry = "native"
    """"native": an image is resized so that its longer side is the native grid's times a power of two, and cut from
    cells that are CLIP's own: an image that needs no detail costs no more than in CLIP and, with leaf_position
    "native", is what CLIP sees. "grid", the paper's: it keeps its size, to the nearest whole cell."""

    layout: Layout = "aligned"
    """Placement of the coarsest blocks: tiled from the top-left corner, or centred as in the authors' code."""

    image_size: int | None = None
    """Shorter side, in pixels, to resize to; None keeps it. With geometry "native" it only chooses the power of two."""

    interpolation: Interpolation = "bicubic"
    """How position embeddings are interpolated between the points of the pretrained table."""

    mlp: str | None = None
    """Path of the MLP prior's weights, ours or the authors' .pt; required by interpolation="mlp", else ignored."""

    mlp_residual: bool = True
    """Add the interpolated residual (table - prior), so that the native grid is exact; False is the paper's form."""

    leaf_position: LeafPosition = "native"
    """A leaf's position is that of its centre, with the table laid by the centres of native cells ("native"); or corner
    to corner over the grid, as in the paper ("centre"); that of its cell (row + size // 2, col + size // 2) as in the
    authors' code ("cell"); or the mean over its cells ("mean")."""

    placement: Placement = "whole"
    """Where an image that is not square lies on the native grid, in the tower ("native" positions) and in the language
    model: stretched over the whole of it, or where it lies in the square that LLaVA pads it to."""

    coarsest: Coarsest = "native"
    """"native": no leaf covers more than one cell of the tower's native grid, so that nothing is coarser than in CLIP,
    as far as the budget allows; helps counting and large objects. "any": the paper's roots, fewer tokens."""

    structure_size: int = 7
    """Window of "objects" and "structure" (measured with 5), in sampled pixels; odd, >= 3. What is narrower splits."""

    noise_floor: bool = True
    """Lower the scores of "objects" and "structure" by what the image's own noise would score, and split nothing into
    cells that show more noise than detail; without it noise is cut like detail, up to the budget."""

    thumbnail: bool = False
    """Put the image downsized to the tower's native size, as in CLIP, before the leaves. With the same number
    of tokens, leaves alone do better."""

    tiling: Tiling = "image"
    """In models that were trained on tiles (LLaVA-1.6): one quadtree over the whole "image" instead of base and tiles;
    or the base as it is, and a quadtree in each of the "tiles" of the resolution that suits the image. Other models
    take "image" alone."""

    llm_positions: LLMPositions = "raster"
    """Positions in the language model: those on the native raster, or the usual running count."""

    size_bias: float = 0.0
    """s: add s * log(cells of the leaf) to the attention logits of a leaf's key in the tower; with geometry "native",
    of native cells. From -4 to 4; 0 is off."""

    keep_split_cells: bool = False
    """Compute the tower's tokens of native cells that are split, too: the other cells attend to them, not to smaller
    leaves, and are seen as in CLIP (`qlip.split_cells`). Better about large objects (docs/results/split-cells.md)."""

    llm_size_bias: float = -0.25
    """The same in the language model. Below 0 small leaves, where the detail is, weigh more than the large ones around
    them; without it, a few small objects among many tokens are undercounted. No effect if all leaves are one cell.
    Needs the attention "sdpa" or "eager"; 0 works with any."""

    llm_weight: LLMWeight = "each"
    """How much an image weighs in the language model's attention: "each" token counts one, so that many tokens outweigh
    the text; "native" shifts their logits by a constant so that together they weigh as the native n * n tokens."""

    seed: int = 0
    """Seed of criterion "random"."""

    max_cells: int = 16384
    """Bound on the cells of an image's grid; larger images are resized to fit. 16384 cells of 14 px: 1792 x 1792 px."""

    def __post_init__(self) -> None:
        for name, value in list(vars(self).items()):
            if isinstance(value, Real) and type(value) not in (bool, int, float):  # numpy scalars, as from np.arange
                object.__setattr__(self, name, int(value) if isinstance(value, Integral) else float(value))
        for name, allowed in list_choices(QLIPConfig).items():
            check_choice(name, getattr(self, name), allowed)
        check_threshold(self.alpha)
        for name in ("mlp_residual", "noise_floor", "keep_split_cells", "thumbnail"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} is {getattr(self, name)!r}; it must be true or false")
        if not isinstance(self.mlp, (str, type(None))):
            raise TypeError(f"mlp is {self.mlp!r}; it must be the path of the prior's weights, as a string, or null")
        for name in ("max_tokens", "image_size"):
            if (value := getattr(self, name)) is not None:
                check_count(name, value)
        check_count("max_cells", self.max_cells)
        for name in ("score_share", "question_share"):
            check_number(name, getattr(self, name), least=0.0)
        check_window(self.structure_size)
        for name in ("size_bias", "llm_size_bias"):
            check_number(name, getattr(self, name), least=-STRONGEST_BIAS, most=STRONGEST_BIAS)
        check_count("seed", self.seed, least=0)
        if self.placement == "padded" and self.thumbnail:
            raise ValueError(
                "placement is 'padded' and thumbnail is true, but a thumbnail fills the whole native grid; set"
                " placement to 'whole' or thumbnail to false"
            )
        if self.interpolation == "mlp" and self.mlp is None:
            raise ValueError("interpolation is 'mlp' but mlp is None; give the path of the prior's weights")

    @property
    def biases_language_model(self) -> bool:
        """Whether image tokens may get weights other than 1 in the language model's attention."""
        return self.llm_size_bias != 0 or self.llm_weight != "each"

    def to_dict(self) -> dict[str, Any]:
        """Converts all fields to JSON values; an infinite alpha becomes the string "inf"."""
        values = asdict(self)
        if math.isinf(self.alpha):
            values["alpha"] = "inf"
        return values

    @classmethod
    def paper(cls, **changes: Any) -> QLIPConfig:
        """Makes the settings of the QLIP paper, with changes.

        The paper sweeps `alpha` and `image_size` for each benchmark, trains a prior (`interpolation="mlp"`), and has no
        budget.
        """
        return cls(**{**PAPER, **changes})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> QLIPConfig:
        """Reads what `to_dict` writes; missing fields take their defaults.

        Raises:
            TypeError: `values` is not a mapping, or a value has the wrong type.
            ValueError: a key is not a field, or a value is out of range.
        """
        if not isinstance(values, Mapping):
            raise TypeError(f"the QLIP settings are {values!r}; they must be an object of settings by name")
        if values.get("question_cells", 0) is None:  # written with its default before `question_share` replaced it
            values = {name: value for name, value in values.items() if name != "question_cells"}
        allowed = {field.name for field in fields(cls)}
        if unknown := sorted(str(name) for name in set(values) - allowed):
            close = [match for name in unknown for match in get_close_matches(name, allowed, 1, 0.65)]
            names = ", ".join(unknown) + (f" (did you mean {', '.join(close)}?)" if close else "")
            raise ValueError(f"unknown QLIP setting {names}; allowed are {', '.join(sorted(allowed))}")
        alpha = values.get("alpha")
        if isinstance(alpha, Mapping) and list(alpha) == ["__float__"]:
            alpha = alpha["__float__"]  # how transformers writes infinity to config.json
        if isinstance(alpha, str):
            with suppress(ValueError):  # the field's own check reports a text that is not a number
                values = {**values, "alpha": float(alpha)}
        return cls(**values)


def check_threshold(alpha: float) -> None:
    """Raises unless `alpha` is a number >= 0 (infinity included)."""
    allowed = ">= 0 (0 is the uniform grid, infinity the coarsest tree)"
    if not is_number(alpha):
        raise TypeError(f"alpha is {alpha!r}; it must be a number {allowed}")
    if not alpha >= 0 or (isinstance(alpha, int) and alpha > sys.float_info.max):
        raise ValueError(f"alpha is {show(alpha)}; it must be {allowed}")


def check_count(name: str, value: int, least: int = 1) -> None:
    """Raises unless `value` is an integer of at least `least`, and of less than 64 bits."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; it must be an integer")
    if value < least:
        raise ValueError(f"{name} is {show(value)}; it must be at least {least}")
    if value >= 2**63:
        raise ValueError(f"{name} is {show(value)}; it must be below 2^63")


def check_number(name: str, value: float, least: float = -math.inf, most: float = math.inf) -> None:
    """Raises unless `value` is a finite number from `least` to `most`."""
    if not is_number(value):
        raise TypeError(f"{name} is {value!r}; it must be a number")
    if not (least <= value <= most and abs(value) <= sys.float_info.max):  # an int may be larger than floats are
        bound = "" if least == -math.inf else f" of at least {least:g}"
        bound += "" if most == math.inf else f" and at most {most:g}"
        raise ValueError(f"{name} is {show(value)}; it must be a finite number{bound}")


def show(value: float) -> str:
    """Formats a number for an error message; Python refuses to print integers of thousands of digits."""
    return "a huge number" if isinstance(value, int) and abs(value) >= 10**4000 else f"{value!r:.40}"


def is_number(value: object) -> bool:
    """Whether `value` is an int or a float, but not a bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_window(size: int) -> None:
    """Raises unless `size` is an odd integer >= 3."""
    check_count("structure_size", size)
    if size < 3 or size % 2 == 0:
        raise ValueError(f"structure_size is {size}; it must be odd and at least 3")
