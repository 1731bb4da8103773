"""The settings of `qlip fit`, checked when they are made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from qlip.config import Criterion, check_choice, check_count, check_number, check_threshold, list_choices

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
"""Settings in which a recipe differs from the defaults, which are the paper's; "released" is the authors' script."""

MAY_CHANGE = ("out", "images", "init", "workers", "save_every", "resume", "log_dir")
"""Settings that a resumed run may change."""


@dataclass(frozen=True)
class FitConfig:
    """What is trained, on what, and how. The defaults are the paper's where it gives them, except `exact_start`."""

    tower: str
    """Checkpoint of CLIP, SigLIP or DINOv2: a folder or a hub id. It is not changed."""

    out: str | Path
    """Where the prior is written: a .safetensors file, for `QLIPConfig(interpolation="mlp", mlp=...)`."""

    images: str | Path | None = None
    """Folder of images, searched recursively; None fits the position table alone."""

    init: str | Path | None = None
    """Weights to start from, anything that `CoordinateMLP.load` reads; None: random ones,
    in the paper's 4 hidden layers of 1024."""

    frequencies: Frequencies = "smooth"
    """Fourier features without `init`: our 12 bands, or the authors' 48 (`qlip.mlp`)."""

    exact_start: bool = True
    """Without `init`, solve for the last layer before training on images, so that the prior starts exact on the native
    grid; False starts at random, as in the paper."""

    epochs: int = 100
    """Passes over the images."""

    steps: int | None = None
    """Number of batches to train for, instead of `epochs`."""

    batch: int = 14
    """Images per step, over all processes; a multiple of their number."""

    lr: float = 7.5e-5
    """Adam's highest learning rate: it rises over the first 1 % of the steps and falls to 0 as a cosine."""

    theta: float = 1.0
    """Weight of the grid term against the consistency term, >= 0."""

    loss: Loss = "distance"
    """Consistency term: the L2 distance of the pooled outputs; or the mean squared difference of CLIP's image
    embeddings, which are projected and of unit length."""

    criterion: Criterion = "gradient"
    """What scores a block of the quadtree; "random" draws new splits for every image of every batch."""

    alpha: tuple[float, float] = (0.0, 0.1)
    """Range that the split threshold is drawn from."""

    alpha_per: AlphaPer = "batch"
    """Draw one threshold for a batch, or one for each image."""

    sizes: Sizes = "drawn"
    """Sizes of images. "drawn": a shorter side for each batch, the native size to `largest_size`. "own": as they are,
    shrunk if the longer side exceeds `largest_size`."""

    largest_size: int | None = None
    """Pixels, see `sizes`. None: 5/3 of the native size (560 for 336)."""

    max_tokens: int | None = None
    """Most leaves of an image, which bounds memory. None: the cells of a square of the largest size."""

    shape: Shape = "native"
    """Whole images, resized to a square at the native size, or their central squares ("cropped")."""

    seed: int = 0
    """Seed of the weights, the order of images, sizes, thresholds and random splits."""

    mixed_precision: Precision | None = None
    """Autocast of the tower; None: as `accelerate` is configured. The prior is always computed in float32."""

    workers: int = 0
    """Worker processes that read images, for each training process; 0 reads them in the training process."""

    save_every: int = 500
    """Steps between checkpoints, which are written beside `out`."""

    resume: bool = False
    """Continue from the checkpoint, if there is one."""

    log_dir: str | Path | None = None
    """Folder of a TensorBoard log; None writes none."""

    def __post_init__(self) -> None:
        if Path(self.out).suffix != ".safetensors":
            raise ValueError(f"out is {self.out}; its name must end in .safetensors")
        for name in ("epochs", "batch", "save_every"):
            check_count(name, getattr(self, name))
        for name, least in (("steps", 1), ("largest_size", 1), ("max_tokens", 4)):  # a smaller budget allows no tree
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), least)
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
        for name, allowed in list_choices(FitConfig).items():
            check_choice(name, getattr(self, name), allowed)
        if self.mixed_precision is not None:
            check_choice("mixed_precision", self.mixed_precision, Precision)

    @classmethod
    def from_recipe(cls, recipe: Recipe, **values: Any) -> FitConfig:
        """Makes the settings of a recipe; `values` override them.

        Raises:
            TypeError, ValueError: there is no such recipe, or a value is not allowed.
        """
        check_choice("recipe", recipe, Recipe)
        return cls(**{**RECIPES[recipe], **values})

    @property
    def checkpoint(self) -> Path:
        """Path of the checkpoint, which is deleted once the prior is written."""
        return Path(self.out).with_suffix(".checkpoint.pt")

    @property
    def run(self) -> dict[str, Any]:
        """The settings that a resumed run must keep."""
        return {name: value for name, value in asdict(self).items() if name not in MAY_CHANGE}
