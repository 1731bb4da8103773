"""The settings of `qlip fit`, validated where they are made. Knows nothing of towers, pictures or files."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from qlip.config import check_choice, check_count, check_threshold
from qlip.pictures import Shape

Precision = Literal["no", "fp16", "bf16"]

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

    alpha: tuple[float, float] = (0.0, 0.1)
    """Range that the split threshold (criterion "gradient") is drawn from, anew for every batch."""

    largest_size: int | None = None
    """Pixels; a batch's shorter side is drawn between the native size and this. None: 5/3 of it (560 for 336)."""

    max_tokens: int | None = None
    """Most leaves of a picture, which bounds memory. None: the cells of a square of the largest size."""

    shape: Shape = "native"
    """Show whole pictures, squeezed to a square at the native size, or their central squares ("cropped")."""

    seed: int = 0
    """Of the weights, the order of the pictures, sizes and thresholds."""

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
            if not isinstance(value := getattr(self, name), int) or value < 0:
                raise ValueError(f"{name} is {value!r}; it must be an integer of at least 0")
        for name in ("lr", "theta"):
            if not isinstance(value := getattr(self, name), (int, float)) or not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value!r}; it must be a finite number of at least 0")
        for value in self.alpha:
            check_threshold(value)
        if len(self.alpha) != 2 or not self.alpha[0] <= self.alpha[1] < math.inf:
            raise ValueError(f"alpha is {self.alpha}; it must be (lowest, highest), both finite")
        check_choice("shape", self.shape, Shape)
        if self.mixed_precision is not None:
            check_choice("mixed_precision", self.mixed_precision, Precision)

    @property
    def checkpoint(self) -> Path:
        """Where checkpoints lie, until the prior is written."""
        return Path(self.out).with_suffix(".checkpoint.pt")

    @property
    def run(self) -> dict[str, Any]:
        """The settings that a resumed run must share with the one it continues."""
        return {name: value for name, value in asdict(self).items() if name not in MAY_CHANGE}
