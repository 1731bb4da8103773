"""The settings of `qlip fit`, validated where they are made. Knows nothing of towers, pictures or files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from qlip.config import Criterion, check_choice, check_count, check_number, check_threshold

Shape = Literal["native", "cropped"]
AlphaPer = Literal["batch", "picture"]
Sizes = Literal["drawn", "own"]
Precision = Literal["no", "fp16", "bf16"]
Frequencies = Literal["smooth", "authors"]
Loss = Literal["distance", "projected"]
Recipe = Literal["paper", "released"]

RECIPES: Mapping[Recipe, Mapping[str, Any]] = {
    "paper": {},
    "released": {
        "frequencies": "authors",
        "criterion": "random",
        "alpha_per": "picture",
        "sizes": "own",
        "loss": "projected",
        "batch": 56,
    },
}
"""Settings in which a recipe differs from the defaults: none in the paper's, these in the authors' released script."""

MAY_CHANGE = ("out", "images", "init", "workers", "save_every", "resume", "log_dir")
"""Settings that a resumed run need not share with the one it continues."""


@dataclass(frozen=True)
class FitConfig:
    """What is trained, on what, and how. The defaults are the paper's, where it gives them, but for `exact_start`."""

    tower: str
    """CLIP or SigLIP checkpoint: a folder or a hub id. It stays as it is."""

    out: str | Path
    """Where the prior goes: a .safetensors file, for `QLIPConfig(interpolation="mlp", mlp=...)`."""

    images: str | Path | None = None
    """Folder of pictures, searched recursively; None fits the position table alone."""

    init: str | Path | None = None
    """Weights to start from, anything that `CoordinateMLP.load` reads; None: random ones,
    in the paper's 4 hidden layers of 1024."""

    frequencies: Frequencies = "smooth"
    """Of a prior without `init`: our 12 bands, or the authors' 48 (`qlip.mlp`). One from `init` keeps its own."""

    exact_start: bool = True
    """Without `init`, solve for the last layer before training on pictures, so that it starts exact on the native
    grid; False starts at random, as the paper."""

    epochs: int = 100
    """Passes over the pictures."""

    steps: int | None = None
    """Train for so many batches instead of `epochs`."""

    batch: int = 14
    """Pictures per step, over all processes; a multiple of their number."""

    lr: float = 7.5e-5
    """Adam's highest learning rate: it rises over the first 1 % of the steps and falls to 0 as a cosine."""

    theta: float = 1.0
    """Weight of the grid term against the consistency term, >= 0."""

    loss: Loss = "distance"
    """Consistency term: the L2 distance of the pooled outputs; or the mean squared difference of CLIP's image
    embeddings, which are projected and of unit length."""

    criterion: Criterion = "gradient"
    """What scores a block of the quadtree; "random" draws other splits for every picture of every batch."""

    alpha: tuple[float, float] = (0.0, 0.1)
    """Range that the split threshold is drawn from."""

    alpha_per: AlphaPer = "batch"
    """Draw one threshold for the pictures of a batch, or one for each."""

    sizes: Sizes = "drawn"
    """Sizes of pictures. "drawn": one shorter side a batch, between the native size and `largest_size`. "own": as they
    are; those whose longer side exceeds `largest_size` are shrunk to it."""

    largest_size: int | None = None
    """Pixels, see `sizes`. None: 5/3 of the native size (560 for 336)."""

    max_tokens: int | None = None
    """Most leaves of a picture, which bounds memory. None: the cells of a square of the largest size."""

    shape: Shape = "native"
    """Show whole pictures, squeezed to a square at the native size, or their central squares ("cropped")."""

    seed: int = 0
    """Of the weights, the order of the pictures, sizes, thresholds and random splits."""

    mixed_precision: Precision | None = None
    """Autocast of the tower; None: what `accelerate` is set to. The prior is always computed in float32."""

    workers: int = 0
    """Processes per process that read pictures; 0 reads them in line."""

    save_every: int = 500
    """Steps between checkpoints, which lie beside `out`."""

    resume: bool = False
    """Go on from the checkpoint, where there is one."""

    log_dir: str | Path | None = None
    """Folder of a TensorBoard log; None writes none."""

    def __post_init__(self) -> None:
        if Path(self.out).suffix != ".safetensors":
            raise ValueError(f"out is {self.out}; its name must end in .safetensors")
        for name in ("epochs", "batch", "save_every"):
            check_count(name, getattr(self, name))
        for name in ("steps", "largest_size", "max_tokens"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        for name in ("seed", "workers"):
            check_count(name, getattr(self, name), least=0)
        for name in ("lr", "theta"):
            check_number(name, getattr(self, name), least=0.0)
        if not isinstance(self.alpha, tuple) or len(self.alpha) != 2:
            raise TypeError(f"alpha is {self.alpha!r}; it must be (lowest, highest)")
        for value in self.alpha:
            check_threshold(value)
        if not self.alpha[0] <= self.alpha[1] < math.inf:
            raise ValueError(f"alpha is {self.alpha}; it must be (lowest, highest), both finite")
        choices = {"frequencies": Frequencies, "loss": Loss, "criterion": Criterion, "shape": Shape}
        for name, allowed in {**choices, "alpha_per": AlphaPer, "sizes": Sizes}.items():
            check_choice(name, getattr(self, name), allowed)
        if self.mixed_precision is not None:
            check_choice("mixed_precision", self.mixed_precision, Precision)

    @classmethod
    def from_recipe(cls, recipe: Recipe, **values: Any) -> FitConfig:
        """The settings of a recipe, with `values` laid over them.

        Raises:
            TypeError, ValueError: there is no such recipe, or a value is not allowed.
        """
        check_choice("recipe", recipe, Recipe)
        return cls(**{**RECIPES[recipe], **values})

    @property
    def checkpoint(self) -> Path:
        """Where checkpoints lie, until the prior is written."""
        return Path(self.out).with_suffix(".checkpoint.pt")

    @property
    def run(self) -> dict[str, Any]:
        """The settings that a resumed run must share with the one it continues."""
        return {name: value for name, value in asdict(self).items() if name not in MAY_CHANGE}
