"""The training recipes: the commands that they start, and what training's own parser reads from these.

The values are those of LLaVA's scripts of the same names, written down by hand.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig
from transformers.trainer_utils import IntervalStrategy, SchedulerType

from llava.train.arguments import ParsedArguments, parse_arguments
from llava.utils import demo_model_path

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
RECIPES = ("v1_5/pretrain", "v1_5/finetune", "v1_5/finetune_lora", "v1_5/finetune_task", "v1_5/finetune_task_lora")
ALL = (*RECIPES, "finetune_qlora")
ZERO = ("zero2", "zero3", "zero3_offload")

EVERYWHERE = {
    "vision_tower": "openai/clip-vit-large-patch14-336",
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
    "num_train_epochs": 1,
    "per_device_eval_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "eval_strategy": IntervalStrategy.NO,
    "save_strategy": IntervalStrategy.STEPS,
    "save_total_limit": 1,
    "weight_decay": 0,
    "warmup_steps": 0.03,  # a share of all steps, as LLaVA's warmup_ratio
    "lr_scheduler_type": SchedulerType.COSINE,
    "logging_steps": 1,
    "model_max_length": 2048,
    "gradient_checkpointing": True,
    "dataloader_num_workers": 4,
    "lazy_preprocess": True,
    "report_to": ["wandb"],
    "bf16": True,
}
STAGE_1 = {
    "model_name_or_path": "lmsys/vicuna-13b-v1.5",
    "version": "plain",
    "data_path": "./playground/data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json",
    "image_folder": "./playground/data/LLaVA-Pretrain/images",
    "tune_mm_mlp_adapter": True,
    "pretrain_mm_mlp_adapter": None,
    "image_aspect_ratio": "square",
    "group_by_modality_length": False,
    "per_device_train_batch_size": 32,
    "save_steps": 24000,
    "learning_rate": 1e-3,
    "output_dir": "./checkpoints/llava-v1.5-13b-pretrain",
    "lora_enable": False,
    "bits": 16,
}
STAGE_2 = {
    **STAGE_1,
    "version": "v1",
    "data_path": "./playground/data/llava_v1_5_mix665k.json",
    "image_folder": "./playground/data",
    "tune_mm_mlp_adapter": False,
    "pretrain_mm_mlp_adapter": "./checkpoints/llava-v1.5-13b-pretrain/mm_projector.bin",
    "image_aspect_ratio": "pad",
    "group_by_modality_length": True,
    "per_device_train_batch_size": 16,
    "save_steps": 50000,
    "learning_rate": 2e-5,
    "output_dir": "./checkpoints/llava-v1.5-13b",
}
LORA = {"lora_enable": True, "lora_r": 128, "lora_alpha": 256, "mm_projector_lr": 2e-5, "learning_rate": 2e-4}
TASK = {"model_name_or_path": "liuhaotian/llava-v1.5-13b", "pretrain_mm_mlp_adapter": None}
OUT = "./checkpoints/llava-v1.5-13b"
SETTINGS: dict[str, dict[str, Any]] = {
    "v1_5/pretrain": STAGE_1,
    "v1_5/finetune": STAGE_2,
    "v1_5/finetune_lora": {**STAGE_2, **LORA, "output_dir": f"{OUT}-lora"},
    "v1_5/finetune_task": {**STAGE_2, **TASK, "output_dir": f"{OUT}-task"},
    "v1_5/finetune_task_lora": {**STAGE_2, **TASK, **LORA, "output_dir": f"{OUT}-task-lora"},
    "finetune_qlora": {**STAGE_2, **LORA, "bits": 4, "output_dir": f"{OUT}-qlora"},
}
ZERO_OF = dict.fromkeys(RECIPES[1:], "zero3.json") | {"v1_5/pretrain": "zero2.json", "finetune_qlora": "zero2.json"}

PYTHON = """#!/usr/bin/env bash
# Says that it can run llava and which other packages are installed, and prints any other command.
if [[ $1 == -c ]]; then
    if [[ $2 == *device_count* ]]; then echo 3; exit; fi
    if [[ $2 == *"'llava'"* ]]; then exit; fi
    for name in $INSTALLED; do if [[ $2 == *"find_spec('$name')"* ]]; then exit 0; fi; done
    exit 1
fi
printf '%q ' "$@"
"""

Started = tuple[list[str], str]
Start = Callable[..., Started]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Runs a recipe with a `python` that only prints: the command's words and what the recipe says on stderr."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "python").write_text(PYTHON)
    (folder / "python").chmod(0o755)

    def run(recipe: str, *flags: str, installed: str = "wandb", code: int = 0, **variables: str) -> Started:
        environment = {"PATH": f"{folder}:/usr/bin:/bin", "INSTALLED": installed, **variables}
        command = ["bash", str(SCRIPTS / f"{recipe}.sh"), *flags]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, cwd=tmp_path)
        assert done.returncode == code, done.stderr
        return shlex.split(done.stdout), done.stderr

    return run


def parsed(words: list[str], module: str = "llava.train.train") -> dict[str, Any]:
    """Parses the flags after the module, and gathers all three groups of arguments."""
    arguments: ParsedArguments = parse_arguments(words[words.index(module) + 1 :])
    return {name: value for group in arguments[:3] for name, value in vars(group).items()}


@pytest.mark.parametrize("recipe", ALL)
def test_a_recipe_has_the_settings_of_llavas_script(start: Start, recipe: str) -> None:
    values = parsed(start(recipe)[0])
    expected = EVERYWHERE | SETTINGS[recipe]
    assert {name: values[name] for name in expected} == expected


def test_every_recipe_is_checked() -> None:
    found = {
        str(file.relative_to(SCRIPTS).with_suffix("")) for file in [*SCRIPTS.glob("*.sh"), *SCRIPTS.glob("v1_5/*.sh")]
    }
    assert found - {"launch", "python"} == set(ALL)


@pytest.mark.parametrize("recipe", ALL)
def test_with_deepspeed_its_launcher_starts_with_the_recipes_file(start: Start, recipe: str) -> None:
    words, said = start(recipe, installed="deepspeed wandb")
    assert words[:3] == ["-m", "deepspeed.launcher.runner", "--module"]
    assert words[words.index("--deepspeed") + 1] == str(SCRIPTS / ZERO_OF[recipe])
    assert said == ""


def test_without_deepspeed_torchrun_starts_a_process_for_each_gpu_and_the_recipe_says_so(start: Start) -> None:
    words, said = start("v1_5/finetune")
    assert words[:6] == ["-m", "torch.distributed.run", "--nproc-per-node", "3", "-m", "llava.train.train"]
    assert "--deepspeed" not in words
    assert said.count("\n") == 1 and "finetune.sh: deepspeed is not installed" in said


def test_the_launcher_and_its_flags_are_chosen_by_the_environment(start: Start) -> None:
    words, _ = start("v1_5/finetune", LAUNCHER="accelerate", LAUNCHER_FLAGS="--config_file two.yaml")
    assert words[:5] == ["-m", "accelerate.commands.launch", "--config_file", "two.yaml", "-m"]
    words, _ = start("v1_5/finetune", LAUNCHER="torchrun", NUM_PROCESSES="2", LAUNCHER_FLAGS="--nnodes 4")
    assert words[:7] == ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--nnodes", "4", "-m"]
    words, _ = start("v1_5/finetune", NUM_PROCESSES="1")  # whose errors are one line, without a launcher's report
    assert words[:2] == ["-m", "llava.train.train"]
    by_torchrun = ["-m", "torch.distributed.run"]  # which sets what DeepSpeed and FSDP read
    assert start("v1_5/finetune", "--fsdp", "full_shard", NUM_PROCESSES="1")[0][:2] == by_torchrun
    deepspeed = {"installed": "deepspeed wandb", "LAUNCHER": "torchrun", "NUM_PROCESSES": "1"}
    assert start("v1_5/finetune", **deepspeed)[0][:2] == by_torchrun
    _, said = start("v1_5/finetune", LAUNCHER="mpirun", code=2)
    assert "LAUNCHER is 'mpirun'; allowed are deepspeed, torchrun and accelerate" in said


def test_deepspeeds_file_is_chosen_by_the_environment(start: Start) -> None:
    words, _ = start("v1_5/finetune", installed="deepspeed wandb", DEEPSPEED_CONFIG="mine.json")
    assert words[words.index("--deepspeed") + 1] == "mine.json"
    words, said = start("v1_5/finetune", installed="deepspeed wandb", DEEPSPEED_CONFIG="none")
    assert "--deepspeed" not in words and "torch.distributed.run" in words and said == ""


def test_flashattention_is_used_where_it_is_installed_but_for_the_quadtree(start: Start) -> None:
    both = "flash_attn wandb"
    assert "llava.train.train_mem" in start("v1_5/finetune", installed=both)[0]
    assert "llava.train.train" in start("v1_5/finetune", "--qlip", "True", installed=both)[0]
    assert "llava.train.train" in start("v1_5/finetune", "--qlip.alpha=0.5", installed=both)[0]
    assert "mine.train" in start("v1_5/finetune", installed=both, TRAIN="mine.train")[0]


def test_a_checkpoint_may_ask_for_the_quadtree_by_itself(start: Start) -> None:
    both, model = "flash_attn wandb", str(demo_model_path())  # its config.json has settings
    assert "llava.train.train" in start("v1_5/finetune_task", installed=both, MODEL=model)[0]
    for flags in (["--qlip", "False"], ["--qlip=false"], ["--model_name_or_path", "plain"]):
        words, _ = start("v1_5/finetune_task", *flags, installed=both, MODEL=model)
        assert "llava.train.train_mem" in words
    words, _ = start("v1_5/finetune_task", f"--model_name_or_path={model}", installed=both, MODEL="plain")
    assert "llava.train.train_mem" not in words


def test_paths_come_from_the_environment_and_further_flags_count_last(start: Start, tmp_path: Path) -> None:
    paths = {
        "MODEL": "vicuna 7b",  # a blank must survive
        "DATA_PATH": "samples.json",
        "IMAGE_FOLDER": "images",
        "VISION_TOWER": "clip",
        "PROJECTOR": "p.bin",
        "OUTPUT_DIR": "out",
        "REPORT_TO": "none",
    }
    words, _ = start("v1_5/finetune", "--qlip.alpha", "0.5", "--learning_rate", "1e-5", "--num_train_epochs=3", **paths)
    values = parsed(words)
    assert values["model_name_or_path"] == "vicuna 7b"
    assert (values["data_path"], values["image_folder"], values["vision_tower"]) == ("samples.json", "images", "clip")
    assert (values["pretrain_mm_mlp_adapter"], values["output_dir"], values["report_to"]) == ("p.bin", "out", [])
    assert (values["qlip"], values["learning_rate"], values["num_train_epochs"]) == ({"alpha": 0.5}, 1e-5, 3)


def test_the_log_goes_to_tensorboard_where_wandb_is_not_installed(start: Start) -> None:
    words, said = start("v1_5/pretrain", installed="deepspeed")
    assert parsed_word(words, "--report_to") == "tensorboard"
    assert "wandb is not installed" in said


def parsed_word(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


@pytest.mark.parametrize("script", [*RECIPES, "v1_5/eval/pope"])
def test_an_interpreter_that_cannot_run_llava_is_named_in_one_line(start: Start, script: str) -> None:
    _, said = start(script, code=2, PYTHON="false")
    (line,) = said.splitlines()
    assert line.endswith(
        "/false lacks llava, torch or transformers: first `. .venv/bin/activate`, or set PYTHON to one that has them"
    )


def test_a_dry_run_prints_the_command(start: Start) -> None:
    words, _ = start("v1_5/pretrain", DRY_RUN="1", MODEL="vicuna 7b")
    assert words[0] == "python" and parsed_word(words, "--model_name_or_path") == "vicuna 7b"


@pytest.mark.parametrize("name", ZERO)
def test_transformers_fills_in_deepspeeds_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the class that its Trainer uses; DeepSpeed itself is not needed."""
    from accelerate.utils.deepspeed import HfDeepSpeedConfig
    from transformers import TrainingArguments
    from transformers.integrations import deepspeed

    class Config(HfDeepSpeedConfig):
        """transformers' class over accelerate's, which it has where DeepSpeed is installed."""

        def __init__(self, file: str) -> None:
            super().__init__(file)
            self.mismatches: list[str] = []

    for method in ("is_auto", "fill_match", "trainer_config_process", "trainer_config_finalize"):
        setattr(Config, method, vars(deepspeed.HfTrainerDeepSpeedConfig)[method])
    Config.fill_only = vars(deepspeed.HfTrainerDeepSpeedConfig)["fill_only"]  # type: ignore[attr-defined]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, bf16=True, learning_rate=3e-4, warmup_steps=10, report_to="none",
        per_device_train_batch_size=4, gradient_accumulation_steps=2, max_grad_norm=0.5,
    )  # fmt: skip
    config: Any = Config(str(SCRIPTS / f"{name}.json"))
    config.trainer_config_process(arguments)

    class Model:
        config = LlamaConfig(hidden_size=64)

    config.trainer_config_finalize(arguments, Model, 100)
    filled = config.config
    assert '"auto"' not in json.dumps(filled)
    assert (filled["train_micro_batch_size_per_gpu"], filled["train_batch_size"]) == (4, 8)
    assert (filled["bf16"]["enabled"], filled["fp16"]["enabled"]) == (True, False)
    assert filled["zero_optimization"]["stage"] == (2 if name == "zero2" else 3)
    assert filled["zero_optimization"]["reduce_bucket_size"] == 64 * 64
    if name == "zero3_offload":
        assert filled["optimizer"]["params"]["lr"] == filled["scheduler"]["params"]["warmup_max_lr"] == 3e-4
        assert (filled["scheduler"]["params"]["warmup_num_steps"], filled["gradient_clipping"]) == (10, 0.5)


@pytest.mark.parametrize("flag", [["--fsdp"], ["--fsdp", "full_shard auto_wrap"]])
def test_transformers_takes_the_settings_of_fsdp(flag: list[str]) -> None:
    needed = ["--data_path", "d.json", "--output_dir", "out", "--fsdp_config", str(SCRIPTS / "fsdp.json")]
    plugin = parse_arguments([*needed, *flag]).training.fsdp_plugin_args
    assert plugin["transformer_cls_names_to_wrap"] == "LlamaDecoderLayer"
    assert (plugin["fsdp_version"], plugin["reshard_after_forward"]) == (2, True)
