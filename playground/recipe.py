"""LLaVA's two stages on the demo's parts, trained by `llava.train` as anyone trains: a projector, then the whole model.

Every command is printed before it runs, and can be repeated by hand.
"""

from __future__ import annotations

import json
import logging
import shlex
from dataclasses import dataclass
from pathlib import Path

from llava.train.train import train as llava_train
from playground.instructions import CAPTIONS, CONVERSATIONS, IMAGES, write_instructions
from playground.model import CONTEXT, SELECTED_LAYER, load_model, save_checkpoint, write_json
from playground.parts import LANGUAGE_MODEL, TOWER, Parts
from playground.presets import PRESETS
from playground.schedules import LLAVA_SCHEDULES, RECIPES, SCHEDULES, LlavaSchedule, TrainingConfig
from playground.trainer import VOCABULARY, check_stages, run_stages

logger = logging.getLogger(__name__)

PROJECTOR_FILE = "mm_projector.bin"
RECORD = "stage.json"
"""File in a stage's folder: the flags that it is run with, and whether it is done."""


@dataclass(frozen=True)
class LlavaRun:
    """Where LLaVA's stages find their parts and data, and where they write."""

    folder: Path
    """Gets `parts`, `data`, and a folder of each stage."""
    seed: int = 0
    """Seed of the projector's first weights and of the batches."""

    @property
    def parts(self) -> Path:
        """Folder of the language model and the tower."""
        return self.folder / "parts"

    @property
    def data(self) -> Path:
        """Folder of the training data."""
        return self.folder / "data"

    def stage_folder(self, stage: str) -> Path:
        """The output folder of a stage."""
        return self.folder / stage

    def flags(self, stage: str, schedule: LlavaSchedule) -> list[str]:
        """Builds the flags that `llava.train` runs a stage with."""
        own = {
            "pretrain": ["--version=plain", f"--data_path={self.data / CAPTIONS}", "--tune_mm_mlp_adapter=True"],
            "finetune": [
                "--version=v1",
                f"--data_path={self.data / CONVERSATIONS}",
                f"--pretrain_mm_mlp_adapter={self.stage_folder('pretrain') / PROJECTOR_FILE}",
            ],
        }[stage]
        return [
            f"--model_name_or_path={self.parts / LANGUAGE_MODEL}",
            f"--vision_tower={self.parts / TOWER}",
            "--mm_projector_type=mlp2x_gelu",
            f"--mm_vision_select_layer={SELECTED_LAYER}",
            "--mm_use_im_patch_token=False",
            *own,
            f"--image_folder={self.data / IMAGES}",
            "--image_aspect_ratio=pad",
            f"--model_max_length={CONTEXT}",
            f"--output_dir={self.stage_folder(stage)}",
            f"--max_steps={schedule.steps}",
            f"--per_device_train_batch_size={schedule.batch}",
            f"--learning_rate={schedule.rate}",
            "--lr_scheduler_type=cosine",
            "--warmup_ratio=0.03",
            f"--logging_steps={max(1, schedule.steps // 50)}",
            "--save_steps=200",
            "--save_total_limit=1",
            "--dataloader_num_workers=1",
            "--report_to=none",
            f"--seed={self.seed}",
        ]

    def train(self, stage: str, schedule: LlavaSchedule) -> None:
        """Runs a stage unless it is done; one that was stopped continues from its last checkpoint.

        Raises:
            ValueError: the stage's folder holds a run with other flags.
        """
        flags = self.flags(stage, schedule)
        folder = self.stage_folder(stage)
        if is_finished(folder, flags):
            logger.info("%s is done; remove %s to train it again", stage, folder)
            return
        write_record(folder, flags, finished=False)
        print(shlex.join(["python", "-m", "llava.train.train", *flags]), flush=True)
        llava_train(argv=flags)
        write_record(folder, flags, finished=True)


def is_finished(folder: Path, flags: list[str]) -> bool:
    """Whether a stage's folder holds a finished run with these flags.

    Raises:
        ValueError: it holds a run with others.
    """
    if not (file := folder / RECORD).exists():
        return False
    record = json.loads(file.read_text(encoding="utf-8"))
    if other := sorted(set(flags) - set(record["flags"])):
        raise ValueError(f"{folder} holds a run without {other[0]}; remove it, or give another --out")
    return bool(record["finished"])


def write_record(folder: Path, flags: list[str], finished: bool) -> None:
    """Notes in a stage's folder what it is run with."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RECORD, {"flags": flags, "finished": finished})


def train_llava(config: TrainingConfig) -> None:
    """Trains by the recipe `llava`: decoder and tower apart, then together in LLaVA's two stages.

    After the last stage it writes the checkpoint to `config.out / "llava-demo"`.
    """
    check_stages("llava", config.stages)
    schedules = {name: schedule.scaled(config.steps_scale) for name, schedule in LLAVA_SCHEDULES.items()}
    later = [name for name in schedules if name in config.stages]
    apart = [name for name in RECIPES["llava"] if name in SCHEDULES]
    tokenizer, model = run_stages(config, apart, needed_by=later[0] if later else None)
    if not later:
        return
    run = LlavaRun(config.out, config.seed)
    Parts(model.decoder, tokenizer, model.tower).save(run.parts)
    used = max(schedule.steps * schedule.batch for schedule in schedules.values())
    write_instructions(run.data, PRESETS["base"], config.seed + 1, min(config.scenes, used))
    for name in later:
        run.train(name, schedules[name])
    if "finetune" in later:
        save_checkpoint(load_model(run.stage_folder("finetune")), config.out / VOCABULARY, config.out / "llava-demo")
