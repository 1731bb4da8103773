"""Runs the stages of training, one after the other, and keeps their progress in files."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from llava.model.loading.tokenizer import load_tokenizer
from playground.dataset import SceneCache
from playground.model import DemoModel, save_checkpoint
from playground.packing import Packer
from playground.presets import PRESETS
from playground.schedules import CHECKPOINTS, RECIPES, SCHEDULES, Schedule, TrainingConfig, scale
from playground.stages import DecoderStage, JointStage, Readout, Surroundings, Symbols, TowerStage
from playground.vocabulary import train_vocabulary
from qlip.files import replacing

logger = logging.getLogger(__name__)

VOCABULARY = "vocabulary"
"""Folder of the tokenizer, in that of the run."""
LOGS = "logs"
"""Folder of the losses, in that of the run: a folder of each stage, as `llava.train.curve` reads them."""


class Trainer:
    """Minimises a stage's loss and saves its progress to a file."""

    def __init__(self, name: str, stage: nn.Module, schedule: Schedule, config: TrainingConfig) -> None:
        self.name, self.stage, self.schedule, self.config = name, stage, schedule, config
        self.file = config.out / f"{name}.pt"
        self.optimizer = torch.optim.AdamW(_parameter_groups(stage), betas=(0.9, 0.98), eps=1e-8, fused=True)
        self.step = 0
        self.history: list[dict[str, float]] = []

    @property
    def run_values(self) -> dict[str, int]:
        """What the stage's batches and rates follow from; progress with other values can't be continued."""
        return {"seed": self.config.seed, "scenes": self.config.scenes, "steps": self.schedule.steps}

    def run(self) -> None:
        """Trains to the last step, from kept progress if there is any."""
        self.load()
        begun, averages = time.monotonic(), Averages()
        first = self.step
        while self.step < self.schedule.steps:
            averages.add(self.advance())
            if self.step % self.config.log_every == 0 or self.step == self.schedule.steps:
                self.history.append({"step": self.step, **averages.values})
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
        """Runs one step; returns its loss and what the stage reports."""
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
        """Loads saved progress, if there is any.

        Raises:
            ValueError: it is of a run with other values.
        """
        if self.file.exists():
            kept = torch.load(self.file, map_location="cpu", weights_only=True)
            check_same_run(self.file, kept.get("run", {}), self.run_values)
            self.stage.load_state_dict(kept["weights"])
            self.optimizer.load_state_dict(kept["optimizer"])
            self.step = kept["step"]
            self.history = kept.get("history", [])
            logger.info("%s continues from step %d", self.name, self.step)

    def save(self) -> None:
        """Saves the progress; an interruption leaves the last file whole."""
        content = {
            "weights": self.stage.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "history": self.history,
            "run": self.run_values,
        }
        with replacing(self.file) as new:
            torch.save(content, new)
        log = self.config.out / LOGS / self.name / "trainer_state.json"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(json.dumps({"log_history": self.history}, indent=1) + "\n", encoding="utf-8")


class Averages:
    """Running means of named numbers, for the log."""

    def __init__(self, memory: float = 0.97) -> None:
        self.memory = memory
        self.values: dict[str, float] = {}

    def add(self, numbers: dict[str, Tensor]) -> None:
        """Adds the values of one step."""
        for name, number in numbers.items():
            new = float(number)
            self.values[name] = self.memory * self.values.get(name, new) + (1 - self.memory) * new

    def __str__(self) -> str:
        return " ".join(f"{name} {value:.3f}" for name, value in self.values.items())


def _parameter_groups(module: nn.Module, decay: float = 0.02) -> list[dict]:
    """Groups parameters: weight decay for matrices only, not for embeddings, biases and norms."""
    matrices, others = [], []
    for name, weight in module.named_parameters():
        decays = weight.ndim > 1 and "embed" not in name
        (matrices if decays else others).append(weight)
    return [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]


def train(config: TrainingConfig) -> DemoModel:
    """Trains by the recipe `joint`; after the last stage writes the checkpoint."""
    check_stages("joint", config.stages)
    _, model = run_stages(config, SCHEDULES, "joint" if "joint" in config.stages else None)
    if "joint" in config.stages:
        save_checkpoint(model, config.out / VOCABULARY, config.out / CHECKPOINTS["joint"])
    return model


def check_stages(recipe: str, stages: Iterable[str]) -> None:
    """Raises ValueError unless `stages` are a recipe's."""
    if unknown := set(stages) - set(RECIPES[recipe]):
        allowed = ", ".join(RECIPES[recipe])
        raise ValueError(f"unknown stages {sorted(unknown)} of the recipe {recipe}; allowed: {allowed}")


def run_stages(
    config: TrainingConfig, names: Iterable[str], needed_by: str | None = None
) -> tuple[PreTrainedTokenizerBase, DemoModel]:
    """Runs those stages of the recipe `joint` that `config` asks for, and loads what progress the others have made.

    Args:
        config: the training run.
        names: of `SCHEDULES`, in order.
        needed_by: a stage that all of these must be done for.

    Raises:
        ValueError: one of them is not done.
    """
    device = training_device()
    tokenizer = open_vocabulary(config.out, "joint", train_vocabulary)
    scenes = SceneCache(config.out / "scenes", PRESETS["base"], config.seed + 1, config.scenes)
    around = Surroundings(scenes, Packer(tokenizer), config.seed, SCHEDULES["joint"].batch, device)

    torch.manual_seed(config.seed)
    model, symbols, readout = DemoModel(len(tokenizer)), Symbols(), Readout()
    stages = {
        "decoder": DecoderStage(model, symbols, around),
        "tower": TowerStage(model, readout, around),
        "joint": JointStage(model, symbols, readout, around),
    }
    schedules = scale(SCHEDULES, config.steps_scale)
    run_in_order(config, {name: stages[name] for name in names}, schedules, needed_by)
    return tokenizer, model


def open_vocabulary(out: Path, recipe: str, train: Callable[[Path], None]) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a run, trained first where there is none.

    Args:
        out: folder of the run.
        recipe: the run's; each trains another vocabulary.
        train: writes the tokenizer into a folder.

    Raises:
        ValueError: the folder holds the vocabulary of another recipe.
    """
    folder = out / VOCABULARY
    note = folder / "recipe.txt"
    if not (folder / "tokenizer_config.json").exists():
        train(folder)
        note.write_text(recipe + "\n", encoding="utf-8")
    found = note.read_text(encoding="utf-8").strip() if note.exists() else recipe
    if found != recipe:
        raise ValueError(f"{folder} is of the recipe {found!r}, this run's is {recipe!r}; give another --out")
    return load_tokenizer(folder)


def check_same_run(file: Path, kept: Mapping[str, int], own: Mapping[str, int]) -> None:
    """Checks that progress is that of a run with the same values, as far as its file states them.

    Raises:
        ValueError: a value differs.
    """
    for name, value in own.items():
        if kept.get(name, value) != value:
            raise ValueError(
                f"{file} holds progress with {name} {kept[name]}, this run has {value}; repeat its flags, or give"
                " another --out"
            )


def training_device() -> torch.device:
    """Chooses a GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def run_in_order(
    config: TrainingConfig, stages: Mapping[str, nn.Module], schedules: Mapping[str, Schedule], needed_by: str | None
) -> None:
    """Trains those of some stages that `config` asks for, and loads the others' progress.

    Raises:
        ValueError: one of them is not done, and `needed_by` needs all.
    """
    for name, stage in stages.items():
        trainer = Trainer(name, stage.to(training_device()), schedules[name], config)
        if name in config.stages:
            trainer.run()
        else:
            trainer.load()
        if needed_by is not None and trainer.step < (steps := trainer.schedule.steps):
            raise ValueError(f"stage {name} is at step {trainer.step} of {steps}; {needed_by} needs it done")
