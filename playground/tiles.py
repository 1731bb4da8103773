"""The recipe `tiles`: trains the recipe `joint`'s checkpoint on, in LLaVA-1.6's format: on a base and tiles (anyres).

It answers whether leaves in the places of tiles serve a model that was trained on tiles and never saw a leaf.
"""

from __future__ import annotations

from pathlib import Path

import torch

from llava.model.builder import load_pretrained_model
from llava.train.curve import draw_losses
from playground.instructions import CONVERSATIONS, IMAGES, write_instructions
from playground.presets import TILED
from playground.recipe import common_flags, run_stage
from playground.schedules import CHECKPOINTS, TILES_SCHEDULES, LlavaSchedule, TrainingConfig, shipped_path
from playground.trainer import check_stages

PINPOINTS = [[112, 224], [224, 112], [224, 224], [336, 112], [112, 336]]
"""(width, height) of the resolutions, LLaVA-1.6's in proportion to the tower's 112 pixels."""


def tiles_flags(out: Path, seed: int, schedule: LlavaSchedule, workers: int = 1) -> list[str]:
    """Builds the flags that `llava.train` runs with: as LLaVA-1.6 was trained, tower and all, without a quadtree."""
    data = out / "data"
    return [
        f"--model_name_or_path={shipped_path('joint')}",
        "--version=v1",
        f"--data_path={data / CONVERSATIONS}",
        f"--image_folder={data / IMAGES}",
        "--image_aspect_ratio=anyres",
        "--mm_patch_merge_type=spatial_unpad",
        f"--image_grid_pinpoints={PINPOINTS}",
        "--unfreeze_mm_vision_tower=True",
        "--qlip=False",
        *common_flags(schedule, out / "tiles", seed, workers),
    ]


def train_on_tiles(config: TrainingConfig) -> None:
    """Trains the shipped checkpoint of the recipe `joint` on tiles.

    `config.out / "llava-tiles-demo"` is the result, in LLaVA-1.6's format, with weights in float16. Losses are drawn
    to `config.out / "loss.svg"`.
    """
    check_stages("tiles", config.stages)
    schedule = TILES_SCHEDULES["tiles"].scaled(config.steps_scale)
    write_instructions(config.out / "data", TILED, config.seed + 1, min(config.scenes, schedule.steps * schedule.batch))
    flags = tiles_flags(config.out, config.seed, schedule, max(1, config.workers))
    run_stage(config.out / "tiles", flags)
    save_half(config.out / "tiles", config.out / CHECKPOINTS["tiles"])
    draw_losses([config.out / "tiles"], config.out / "loss.svg")


def save_half(trained: Path, folder: Path) -> None:
    """Writes a checkpoint's weights in float16, with its tokenizer, to `folder`."""
    tokenizer, model, _, _ = load_pretrained_model(trained, device="cpu", qlip=False, dtype=torch.float16)
    model.config.mm_vision_tower = "."  # it is inside, under no other name
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes for the owner alone
