"""How the embedded model is trained: its stages, their steps and learning rates. Imports nothing heavy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Schedule:
    """How a stage is minimised."""

    steps: int
    """Number of optimiser steps."""
    rate: float
    """Peak learning rate."""
    warmup: int = 100
    """Steps of linear rise."""
    floor: float = 0.02
    """Last learning rate as a share of the peak."""

    def rate_at(self, step: int) -> float:
        """Learning rate of a step."""
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.rate * min(1.0, (step + 1) / self.warmup) * (self.floor + (1 - self.floor) * cosine)


SCHEDULES = {
    "decoder": Schedule(steps=1300, rate=2e-3, floor=0.1),
    "tower": Schedule(steps=3000, rate=1.5e-3),
    "joint": Schedule(steps=3000, rate=1e-3),
}


@dataclass(frozen=True)
class TrainingConfig:
    """What a training run is made of."""

    out: Path
    """Folder for scenes, progress and the finished checkpoint."""
    seed: int = 0
    """Seed of scenes, weights and batches."""
    scenes: int = 60_000
    """Number of training scenes."""
    batch: int = 32
    """Scenes a step."""
    steps_scale: float = 1.0
    """Multiplies the number of steps of every stage."""
    stages: tuple[str, ...] = tuple(SCHEDULES)
    """Stages to run; `joint` needs the others done."""
    save_every: int = 200
    """Steps between two saves of the progress."""
    log_every: int = 50
    """Steps between two lines of progress."""
