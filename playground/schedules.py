"""How the embedded models are trained: recipes, their stages, steps and learning rates. Imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar


@dataclass(frozen=True)
class Schedule:
    """How a stage is minimised."""

    steps: int
    """Number of optimiser steps."""
    rate: float
    """Peak learning rate."""
    batch: int = 32
    """Scenes, pictures or windows of text a step."""
    warmup: int = 100
    """Steps of linear rise."""
    floor: float = 0.02
    """Last learning rate as a share of the peak."""

    def scaled(self, factor: float) -> Schedule:
        """Builds the same schedule with `factor` times the steps."""
        return replace(self, steps=max(1, round(self.steps * factor)))

    def rate_at(self, step: int) -> float:
        """Computes the learning rate of a step."""
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.rate * min(1.0, (step + 1) / self.warmup) * (self.floor + (1 - self.floor) * cosine)


SCHEDULES = {
    "decoder": Schedule(steps=1300, rate=2e-3, floor=0.1),
    "tower": Schedule(steps=3000, rate=1.5e-3),
    "joint": Schedule(steps=3000, rate=1e-3),
}
"""Stages of the recipe `joint`, which `playground.trainer` runs."""

PRETRAINING_SCHEDULES = {
    "language": Schedule(steps=6000, rate=2e-3, floor=0.05),
    "vision": Schedule(steps=10_000, rate=1.5e-3, batch=128),
}
"""First stages of the recipe `llava`, which `playground.trainer` runs: they do not depend on each other."""


@dataclass(frozen=True)
class LlavaSchedule:
    """How one of LLaVA's stages is trained by `llava.train`: linear warm-up, cosine to zero, AdamW without decay."""

    steps: int
    """Number of optimiser steps."""
    rate: float
    """Peak learning rate."""
    batch: int
    """Samples a step."""

    def scaled(self, factor: float) -> LlavaSchedule:
        """Builds the same schedule with `factor` times the steps."""
        return replace(self, steps=max(1, round(self.steps * factor)))


LLAVA_SCHEDULES = {
    "pretrain": LlavaSchedule(steps=400, rate=2e-3, batch=64),
    "finetune": LlavaSchedule(steps=2500, rate=1e-3, batch=64),
}
"""Last stages of the recipe `llava`, which `llava.train` runs."""

TILES_SCHEDULES = {"tiles": LlavaSchedule(steps=1000, rate=5e-4, batch=16)}
"""The one stage of the recipe `tiles`, which `llava.train` runs, from the checkpoint of the recipe `joint`."""

Scaled = TypeVar("Scaled", Schedule, LlavaSchedule)


def scale(schedules: Mapping[str, Scaled], factor: float) -> dict[str, Scaled]:
    """Builds the same schedules with `factor` times the steps."""
    return {name: schedule.scaled(factor) for name, schedule in schedules.items()}


RECIPES = {
    "joint": (*SCHEDULES,),
    "llava": (*PRETRAINING_SCHEDULES, *LLAVA_SCHEDULES),
    "tiles": (*TILES_SCHEDULES,),
}
"""Stages of each recipe, in order."""
CHECKPOINTS = {"joint": "llava-joint-demo", "llava": "llava-demo", "tiles": "llava-tiles-demo"}
"""Folder of each recipe's finished checkpoint, in that of the run; see `shipped_path`."""
SCENES = {"joint": 60_000, "llava": 40_000, "tiles": 12_000}
"""Most training scenes of each recipe."""


def shipped_path(recipe: str) -> Path:
    """Finds a recipe's checkpoint of seed 1 in a checkout; an installed package has that of `llava` alone."""
    return Path(__file__).parent / CHECKPOINTS[recipe]


@dataclass(frozen=True)
class TrainingConfig:
    """What a training run is made of."""

    out: Path
    """Folder for scenes, progress and the finished checkpoint."""
    seed: int = 0
    """Seed of scenes, weights and batches."""
    scenes: int = SCENES["joint"]
    """Most training scenes."""
    workers: int = 0
    """Processes that draw batches ahead; the batches are the same with any number."""
    steps_scale: float = 1.0
    """Multiplies the number of steps of every stage."""
    stages: tuple[str, ...] = RECIPES["joint"]
    """Stages to run; a later one needs the earlier ones done, but for a recipe's first two, which need nothing."""
    save_every: int = 200
    """Steps between two saves of the progress."""
    log_every: int = 50
    """Steps between two lines of progress."""
