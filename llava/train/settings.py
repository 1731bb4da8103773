"""Settings that a resumed run must share with the one that it continues; plan.py has what decides on its samples.

Refused is what would mix two models or two kinds of input, and what the saved optimizer and schedule would override
silently. What acts on each step alone may change: precision, `--max_grad_norm`, `--lora_dropout`, saving, evaluation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava.conversation import conv_templates
from llava.model.loading.files import hash_files, weight_files
from llava.model.loading.folder import local_folder
from llava.model.multimodal_encoder.qlip_encoder import read_settings
from llava.train.arguments import ParsedArguments
from llava.train.finite import START_FROM_WEIGHTS
from llava.train.parameters import is_deepspeed, is_fsdp
from llava.train.saving import read_totals
from llava.train.start import VISION_FIELDS, Start

OPTIMIZER_FLAGS = (
    "learning_rate",
    "mm_projector_lr",
    "weight_decay",
    "optim",
    "optim_args",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
)
"""Flags that the state of the optimizer or of the schedule overrides, or that would give a schedule of two parts."""
MODEL_FLAGS = ("freeze_backbone", "unfreeze_mm_vision_tower")
TRAINING_FLAGS = ("freeze_mm_mlp_adapter", "model_max_length", "bits", "quant_type", "double_quant")
"""With `MODEL_FLAGS`: which parts are trained, above which frozen ones, and how samples are cut."""
WEIGHTS_OF = "hash of the weights of "
"""Precedes the flag in the name of a setting that is a hash of weights: they may be at another path by now."""


def list_settings(args: ParsedArguments, start: Start) -> dict[str, Any]:
    """Lists the settings by their flags, as JSON holds them; those of a checkpoint where the command line has none."""
    config, vision = start.checkpoint.config, start.vision
    training: Any = args.training
    found: dict[str, Any] = {f"--{name}": getattr(training, name) for name in OPTIMIZER_FLAGS + TRAINING_FLAGS}
    found |= {f"--{name}": getattr(args.model, name) for name in MODEL_FLAGS}
    found["--version"] = next(name for name, one in conv_templates.items() if one == conv_templates[start.template])
    found["--deepspeed"], found["--fsdp"] = is_deepspeed(training), is_fsdp(training)
    found |= {
        f"{WEIGHTS_OF}--{flag}": hash_files(files, named=False) for flag, files in find_weights(args, start).items()
    }
    if vision is not None:
        found |= {f"--{name}": getattr(vision, name) for name in VISION_FIELDS}
        settings = read_settings(config.qlip)
        found["--qlip"] = settings is not None
        if settings is not None:
            found |= {f"--qlip.{name}": value for name, value in settings.to_dict().items() if name != "mlp"}
        found["--image_aspect_ratio"] = config.image_aspect_ratio  # after --qlip, which may choose it
        found["--image_grid_pinpoints"] = config.image_grid_pinpoints
    return json.loads(json.dumps(found, default=str))


def find_weights(args: ParsedArguments, start: Start) -> dict[str, list[Path]]:
    """Finds the files of the weights that a run starts from, by the flags that name them.

    A tower on the hub is downloaded as it would be to be loaded.
    """
    config, vision, folder = start.checkpoint.config, start.vision, start.checkpoint.folder
    found = {"model_name_or_path": weight_files(folder)}
    if vision is None:
        return found
    if config.mm_vision_config is None:  # else the checkpoint's weights hold the tower's
        tower = local_folder(str(vision.vision_tower), "model*.safetensors", cache_dir=args.training.cache_dir)
        found["vision_tower"] = weight_files(tower)
    settings = read_settings(config.qlip)
    if settings is not None and settings.interpolation == "mlp" and settings.mlp is not None:
        prior = folder / settings.mlp
        if prior.is_file():  # else loading says so
            found["qlip.mlp"] = [prior]
    return found


def check_resumed_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Checks that a checkpoint was trained with a run's settings.

    Args:
        folder: the checkpoint. Settings that an older version did not save are not checked.
        settings: of this run, see `list_settings`.

    Raises:
        ValueError: it was not.
    """
    saved = read_totals(folder).get("settings", {})
    for name, value in settings.items():
        if (before := saved.get(name, value)) != value:
            changed = f"{name} is {value}, but {folder} was trained with {before}"
            given = "Give that value"
            if name.startswith(WEIGHTS_OF):
                changed = f"{name.removeprefix(WEIGHTS_OF)} names other weights than {folder} was trained with"
                given = "Name the same weights, at any path"
            raise ValueError(
                f"{changed}, and a resumed run cannot change it. {given}, or another --output_dir to start over. A new"
                f" run can {START_FROM_WEIGHTS}"
            )
