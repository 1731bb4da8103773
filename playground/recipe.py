"""The recipe `llava`: a language model from text, a tower from pictures, then LLaVA's two stages by `llava.train`.

Every command is printed before it runs, and can be repeated by hand.
"""

from __future__ import annotations

import json
import logging
import shlex
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from llava.train.curve import draw_losses
from llava.train.train import train as llava_train
from playground.corpus import PIECES, Corpus, sentences
from playground.instructions import CAPTIONS, CONVERSATIONS, IMAGES, write_instructions
from playground.model import (
    CONTEXT,
    LLAVA,
    SELECTED_LAYER,
    DemoModel,
    load_model,
    save_checkpoint,
    write_json,
)
from playground.parts import LANGUAGE_MODEL, TOWER, Parts
from playground.picture_cache import PictureCache
from playground.presets import TRAINING
from playground.pretraining import LanguageStage, Sources, VisionStage
from playground.schedules import (
    CHECKPOINTS,
    LLAVA_SCHEDULES,
    PRETRAINING_SCHEDULES,
    LlavaSchedule,
    TrainingConfig,
    scale,
)
from playground.trainer import LOGS, VOCABULARY, check_stages, open_vocabulary, run_in_order, training_device
from playground.vocabulary import train_vocabulary

logger = logging.getLogger(__name__)

PROJECTOR_FILE = "mm_projector.bin"
WORKERS = "--dataloader_num_workers="
RECORD = "stage.json"
"""File in a stage's folder: the flags that it is run with, and whether it is done."""


@dataclass(frozen=True)
class LlavaRun:
    """Where LLaVA's stages find their parts and data, and where they write."""

    folder: Path
    """Gets `parts`, `data`, and a folder of each stage."""
    seed: int = 0
    """Seed of the projector's first weights and of the batches."""
    workers: int = 1
    """Processes that prepare samples."""

    @property
    def parts(self) -> Path:
        """Folder of the language model and the tower."""
        return self.folder / "parts"

    @property
    def data(self) -> Path:
        """Folder of the training data."""
        return self.folder / "data"

    def stage_folder(self, stage: str) -> Path:
        """Finds the output folder of a stage."""
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
            *common_flags(schedule, self.stage_folder(stage), self.seed, self.workers),
        ]

    def train(self, stage: str, schedule: LlavaSchedule) -> None:
        """Runs a stage unless it is done; one that was stopped continues from its last checkpoint.

        Raises:
            ValueError: the stage's folder holds a run with other flags.
        """
        run_stage(self.stage_folder(stage), self.flags(stage, schedule))


def common_flags(schedule: LlavaSchedule, folder: Path, seed: int, workers: int = 1) -> list[str]:
    """Builds the flags that all stages of `llava.train` share."""
    return [
        f"--model_max_length={CONTEXT}",
        f"--output_dir={folder}",
        f"--max_steps={schedule.steps}",
        f"--per_device_train_batch_size={schedule.batch}",
        f"--learning_rate={schedule.rate}",
        "--lr_scheduler_type=cosine",
        "--warmup_ratio=0.03",
        f"--logging_steps={max(1, schedule.steps // 50)}",
        "--save_steps=200",
        "--save_total_limit=1",
        f"{WORKERS}{workers}",
        "--report_to=none",
        f"--seed={seed}",
    ]


def run_stage(folder: Path, flags: list[str]) -> None:
    """Runs `llava.train` with these flags unless it is done; a run that was stopped continues from its last checkpoint.

    Raises:
        ValueError: the stage's folder holds a run with other flags.
    """
    if is_finished(folder, flags):
        logger.info("%s is done; remove %s to train it again", folder.name, folder)
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
    others = {flag for flag in flags if not flag.startswith(WORKERS)}  # any number draws the same batches
    if other := sorted(others - set(record["flags"])):
        raise ValueError(f"{folder} holds a run without {other[0]}; remove it, or give another --out")
    return bool(record["finished"])


def write_record(folder: Path, flags: list[str], finished: bool) -> None:
    """Notes in a stage's folder what it is run with."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RECORD, {"flags": flags, "finished": finished})


def train_llava(config: TrainingConfig) -> None:
    """Trains by the recipe `llava`: language model and tower apart, then together in LLaVA's two stages.

    The two stages show the tower's full grid at sequential positions, and nothing else. After the last one it writes
    the checkpoint to `config.out / "llava-demo"`, and the losses of all stages to `config.out / "loss.svg"`.
    """
    check_stages("llava", config.stages)
    schedules = scale(LLAVA_SCHEDULES, config.steps_scale)
    later = [name for name in schedules if name in config.stages]
    tokenizer, model = pretrain_parts(config, needed_by=later[0] if later else None)
    if not later:
        return
    run = LlavaRun(config.out, config.seed, max(1, config.workers))
    Parts(model.decoder, tokenizer, model.tower).save(run.parts)
    used = max(schedule.steps * schedule.batch for schedule in schedules.values())
    write_instructions(run.data, TRAINING, config.seed + 1, min(config.scenes, used))
    for name in later:
        run.train(name, schedules[name])
    if "finetune" in later:
        model = load_model(run.stage_folder("finetune"))
        save_checkpoint(model, config.out / VOCABULARY, config.out / CHECKPOINTS["llava"])
        logs = [config.out / LOGS / name for name in PRETRAINING_SCHEDULES]
        draw_losses([*logs, *(run.stage_folder(name) for name in schedules)], config.out / "loss.svg")


def pretrain_parts(config: TrainingConfig, needed_by: str | None = None) -> tuple[PreTrainedTokenizerBase, DemoModel]:
    """Trains the language model on text and the tower on pictures, as far as `config` asks for either.

    Args:
        config: the training run.
        needed_by: a stage that both must be done for.

    Raises:
        ValueError: one of them is not done.
    """
    tokenizer = open_vocabulary(config.out, "llava", lambda folder: train_vocabulary(folder, sentences(), PIECES))
    pictures = None
    if "vision" in config.stages:
        pictures = PictureCache(config.out / "pictures", TRAINING, config.seed + 1, config.scenes)
    sources = Sources(
        corpus=Corpus(tokenizer),
        pictures=pictures,
        tokenizer=tokenizer,
        seed=config.seed,
        device=training_device(),
        workers=config.workers,
    )
    torch.manual_seed(config.seed)
    model = DemoModel(len(tokenizer), LLAVA)
    schedules = scale(PRETRAINING_SCHEDULES, config.steps_scale)
    stages = {
        "language": LanguageStage(model, sources, schedules["language"]),
        "vision": VisionStage(model, sources, schedules["vision"]),
    }
    run_in_order(config, stages, schedules, needed_by)
    return tokenizer, model
