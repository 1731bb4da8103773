"""The training recipes themselves, on a small model's parts: stage 1, then LoRA on the projector that it wrote."""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from llava.model.builder import load_pretrained_model
from llava.train.train import train
from tests.interpreter import start
from tests.llava.checkpoints import transformers_model, write_language_model, write_tower

ROOT = Path(__file__).parents[2]
FLAGS = ("--max_steps", "2", "--per_device_train_batch_size", "1", "--dataloader_num_workers", "0")


def write_samples(folder: Path) -> None:
    samples = []
    for number in range(2):
        Image.new("RGB", (60, 90), (250 * number, 20, 20)).save(folder / f"{number}.png")
        turns = [{"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": "a red circle"}]
        samples.append({"image": f"{number}.png", "conversations": turns})
    (folder / "samples.json").write_text(json.dumps(samples))


def run_recipe(recipe: str, python: Path, variables: dict[str, Any]) -> str:
    """Runs a recipe by torchrun, one process, without DeepSpeed; what it printed."""
    launch = {"PYTHON": str(python), "DEEPSPEED_CONFIG": "none", "NUM_PROCESSES": "1", "REPORT_TO": "none"}
    launch["PYTHON_EXEC"] = str(python)  # what torchrun starts its process with
    launch["LAUNCHER_FLAGS"] = "--standalone"  # so that torchrun runs
    environment = os.environ | launch | {name: str(value) for name, value in variables.items()}
    command = ["bash", str(ROOT / "scripts" / "v1_5" / f"{recipe}.sh"), *FLAGS]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_stage_1_and_lora_train_a_small_model_from_its_parts(tmp_path: Path) -> None:
    """Two steps each. Stage 1 runs in this process, with the flags that its recipe prints."""
    model = transformers_model()
    language, tower = write_language_model(tmp_path / "llama", model), write_tower(tmp_path / "clip", model)
    write_samples(tmp_path)
    paths = {"MODEL": language, "VISION_TOWER": tower, "DATA_PATH": tmp_path / "samples.json", "IMAGE_FOLDER": tmp_path}
    projector = tmp_path / "first" / "mm_projector.bin"
    with start(tmp_path, processes=True) as python:
        first = {**paths, "OUTPUT_DIR": tmp_path / "first", "DRY_RUN": 1}
        printed = shlex.split(run_recipe("pretrain", python, first))
        train(argv=printed[printed.index("llava.train.train") + 1 :])
        run_recipe("finetune_lora", python, {**paths, "OUTPUT_DIR": tmp_path / "second", "PROJECTOR": projector})
    for folder in ("first", "second"):
        state = json.loads((tmp_path / folder / "trainer_state.json").read_text())
        assert state["global_step"] == 2 and all(math.isfinite(line.get("loss", 0)) for line in state["log_history"])
    trained = load_pretrained_model(tmp_path / "second", language, device="cpu")[1].get_model().mm_projector[0].weight
    before = torch.load(projector)["model.mm_projector.0.weight"]
    assert 0 < (trained.float() - before.float()).abs().max() < 0.01  # from stage 1's projector, two steps of 2e-5
