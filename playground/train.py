"""Trains the embedded demo model: `python -m playground.train --out DIR`.

Three stages, each a fixed number of steps with a warm-up and a cosine: the decoder on symbols, the tower on cells,
then all parts on questions. Progress is kept in DIR; a run that was stopped goes on and ends with the same weights.
The first two stages do not need each other: `--stages decoder` and `--stages tower` may run side by side.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from llava.command import OneLineParser, integer, parse_and_run, real
from llava.model.tokenizer import load_tokenizer
from playground.dataset import SceneCache
from playground.model import DemoModel, save_checkpoint
from playground.packing import Packer
from playground.scenes import PRESETS
from playground.stages import DecoderStage, JointStage, Readout, Surroundings, Symbols, TowerStage
from playground.vocabulary import train_vocabulary

logger = logging.getLogger(__name__)


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


class Trainer:
    """Minimises a stage's loss and keeps its progress in a file."""

    def __init__(self, name: str, stage: nn.Module, schedule: Schedule, config: TrainingConfig) -> None:
        self.name, self.stage, self.schedule, self.config = name, stage, schedule, config
        self.file = config.out / f"{name}.pt"
        self.optimizer = torch.optim.AdamW(_parameter_groups(stage), betas=(0.9, 0.98), eps=1e-8, fused=True)
        self.step = 0

    def run(self) -> None:
        """Starts or goes on, until the last step."""
        self.load()
        begun, averages = time.monotonic(), Averages()
        first = self.step
        while self.step < self.schedule.steps:
            averages.add(self.advance())
            if self.step % self.config.save_every == 0 or self.step == self.schedule.steps:
                self.save()
            if self.step % self.config.log_every == 0:
                pace = (time.monotonic() - begun) / (self.step - first)
                left = pace * (self.schedule.steps - self.step) / 60
                logger.info(
                    "%s %d/%d %s (%.2f s a step, %.0f min left)",
                    self.name, self.step, self.schedule.steps, averages, pace, left,
                )  # fmt: skip

    def advance(self) -> dict[str, Tensor]:
        """Takes one step; returns its loss and what the stage reports."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate_at(self.step)
        loss, report = self.stage.loss(self.step, self.step / self.schedule.steps)
        loss.backward()
        nn.utils.clip_grad_norm_(self.stage.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return {"loss": loss.detach()} | report

    def load(self) -> None:
        """Takes up kept progress, if there is any."""
        if self.file.exists():
            kept = torch.load(self.file, weights_only=True)
            self.stage.load_state_dict(kept["weights"])
            self.optimizer.load_state_dict(kept["optimizer"])
            self.step = kept["step"]
            logger.info("%s goes on from step %d", self.name, self.step)

    def save(self) -> None:
        """Keeps the progress; an interruption leaves the last file whole."""
        partial = self.file.with_suffix(".partial")
        content = {
            "weights": self.stage.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        torch.save(content, partial)
        os.replace(partial, self.file)


class Averages:
    """Running means of named numbers, for reading along."""

    def __init__(self, memory: float = 0.97) -> None:
        self.memory = memory
        self.values: dict[str, float] = {}

    def add(self, numbers: dict[str, Tensor]) -> None:
        """Takes in the numbers of one step."""
        for name, number in numbers.items():
            new = float(number)
            self.values[name] = self.memory * self.values.get(name, new) + (1 - self.memory) * new

    def __str__(self) -> str:
        return " ".join(f"{name} {value:.3f}" for name, value in self.values.items())


def _parameter_groups(module: nn.Module, decay: float = 0.02) -> list[dict]:
    """Weight decay for matrices alone: neither for embeddings nor for biases and norms."""
    matrices, others = [], []
    for name, weight in module.named_parameters():
        decays = weight.ndim > 1 and "embed" not in name
        (matrices if decays else others).append(weight)
    return [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]


def train(config: TrainingConfig) -> DemoModel:
    """Runs the stages of `config` and, after the last, writes the checkpoint to `config.out / "llava-demo"`."""
    unknown = set(config.stages) - set(SCHEDULES)
    if unknown:
        raise ValueError(f"unknown stages {sorted(unknown)}; allowed: {', '.join(SCHEDULES)}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vocabulary = config.out / "vocabulary"
    if not (vocabulary / "tokenizer_config.json").exists():
        train_vocabulary(vocabulary)
    tokenizer = load_tokenizer(vocabulary)
    scenes = SceneCache(config.out / "scenes", PRESETS["base"], config.seed + 1, config.scenes)
    around = Surroundings(scenes, Packer(tokenizer), config.seed, config.batch, device)

    torch.manual_seed(config.seed)
    model, symbols, readout = DemoModel(len(tokenizer)), Symbols(), Readout()
    stages = {
        "decoder": DecoderStage(model, symbols, around),
        "tower": TowerStage(model, readout, around),
        "joint": JointStage(model, symbols, readout, around),
    }
    for name, schedule in SCHEDULES.items():
        trainer = Trainer(name, stages[name].to(device), _scaled(schedule, config.steps_scale), config)
        if name in config.stages:
            trainer.run()
        else:
            trainer.load()
        if "joint" in config.stages and trainer.step < trainer.schedule.steps:
            raise ValueError(
                f"stage {name} stands at step {trainer.step} of {trainer.schedule.steps}; joint needs it done"
            )
    if "joint" in config.stages:
        save_checkpoint(model, vocabulary, config.out / "llava-demo")
    return model


def _scaled(schedule: Schedule, factor: float) -> Schedule:
    return Schedule(max(1, round(schedule.steps * factor)), schedule.rate, schedule.warmup, schedule.floor)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `python -m playground.train` and returns the exit code."""
    parser = OneLineParser(prog="train", description="Train the embedded demo model.")
    parser.add_argument("--out", type=Path, required=True, help="folder for scenes, progress and the checkpoint")
    parser.add_argument("--seed", type=integer(0), default=0)
    parser.add_argument("--threads", type=integer(), default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--steps-scale", type=real(above=True), default=1.0, help="multiplies the steps of every stage")
    parser.add_argument("--scenes", type=integer(), default=60_000, help="number of training scenes")
    parser.add_argument("--stages", nargs="+", choices=SCHEDULES, default=list(SCHEDULES), help="stages to run")
    return parse_and_run(parser, command, argv)


def command(options: argparse.Namespace) -> None:
    """Trains as the flags say."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    train(
        TrainingConfig(
            out=options.out,
            seed=options.seed,
            scenes=options.scenes,
            steps_scale=options.steps_scale,
            stages=tuple(options.stages),
        )
    )


if __name__ == "__main__":
    sys.exit(main())
