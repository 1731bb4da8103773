"""The checkpoint that a run continues from: found, and checked to be whole and of the same kind of training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from llava.model.loading.checkpoint import LORA_FILE
from llava.model.loading.files import read_json, tensor_shapes
from llava.model.loading.folder import NON_LORA_FILE, PROJECTOR_FILE
from llava.train.finite import START_FROM_WEIGHTS
from llava.train.saving import checkpoints

SCHEDULER_FILE = "scheduler.pt"
READ_FILES = (
    "optimizer*",
    SCHEDULER_FILE,
    "rng_state*",
    "model*",
    "adapter_model*",
    "pytorch_model*",
    PROJECTOR_FILE,
    NON_LORA_FILE,
)
"""Files of a checkpoint that a resumed run reads."""
OPTIMIZER_FILES = ("optimizer*", "global_step*")
"""What holds an optimizer's state in a checkpoint: torch's file, FSDP's file or folder, DeepSpeed's folder."""


def find_resume(training: Any) -> str | None:
    """Finds the checkpoint to continue from: the flag's, or the last one in the output folder.

    Raises:
        FileNotFoundError: the flag names no folder.
        ValueError: it is a checkpoint of another mode of training; or the flag is false, and there is one.
    """
    given, found = training.resume_from_checkpoint, checkpoints(training.output_dir)
    if str(given).lower() == "false" and found:
        raise ValueError(
            f"--resume_from_checkpoint is {given}, but {training.output_dir} has {found[-1].name}, which the run would"
            " continue from; to start over give another --output_dir, or move its checkpoints away"
        )
    if not given or str(given).lower() in ("true", "false"):
        folder = found[-1] if found else None
    else:
        folder = Path(given)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"--resume_from_checkpoint {given} is not a folder; name a checkpoint-N, or leave the flag out to"
                " continue from the last one in --output_dir"
            )
    if folder is None:
        return None
    check_whole(folder)
    has_projector, has_lora = ((folder / name).is_file() for name in (PROJECTOR_FILE, LORA_FILE))
    if has_projector != training.tune_mm_mlp_adapter or has_lora != training.lora_enable:
        kind = "the projector alone" if has_projector else "LoRA" if has_lora else "the whole model"
        raise ValueError(
            f"{folder} is a checkpoint of training {kind}, but these flags do not; give its flags, or another"
            " --output_dir"
        )
    if not any(next(folder.glob(pattern), None) for pattern in OPTIMIZER_FILES):
        raise ValueError(
            f"{folder} has no state of an optimizer, as --save_only_model leaves it, so its learning rates would"
            f" begin again; give another --output_dir, and {START_FROM_WEIGHTS}"
        )
    if not (folder / SCHEDULER_FILE).is_file() and not any(folder.glob("global_step*")):  # DeepSpeed's own is in there
        raise ValueError(
            f"{folder} lacks {SCHEDULER_FILE}, without which transformers begins the optimizer and its learning rates"
            " again; copy it there, or give another --output_dir"
        )
    return str(folder)


def check_whole(folder: Path) -> None:
    """Checks that a checkpoint is complete as far as its small files and the ends of its large ones show.

    Raises:
        ValueError: it is not, with the file.
    """
    state = folder / "trainer_state.json"
    if not state.is_file():
        raise ValueError(
            f"{folder} holds a part of a checkpoint: it has no {state.name}. A folder of LLaVA's first stage holds the"
            " projector alone, which is a start (--pretrain_mm_mlp_adapter) and can't be continued. Of a run on several"
            f" machines without a shared folder, copy the files of all machines' {folder.name} together. Or give"
            " another --output_dir"
        )
    read_json(state)
    for file in sorted({file for pattern in READ_FILES for file in folder.glob(pattern) if file.is_file()}):
        if file.suffix == ".safetensors":
            tensor_shapes(file)
        elif file.suffix in (".bin", ".pt", ".pth") and not is_zipfile(file):
            raise ValueError(f"{file} is damaged or incomplete; copy it again, or give another --output_dir")


def check_same_step(names: Sequence[str | None]) -> None:
    """Checks that all processes continue from a checkpoint of the same name.

    Raises:
        ValueError: they do not; without a shared folder, each machine keeps checkpoints of its own.
    """
    if len(set(names)) > 1:
        raise ValueError(
            f"the processes would continue from different checkpoints: {', '.join(str(name) for name in names)}; copy"
            " the last one that every machine has, or remove the others"
        )


def check_resumed_adapter(folder: Path, model: Any) -> None:
    """Checks that the adapters in a checkpoint are those that the flags have made.

    Raises:
        ValueError: they are of another rank or scale.
    """
    if not (folder / LORA_FILE).is_file():
        return
    saved, (config, *_) = read_json(folder / LORA_FILE), model.peft_config.values()
    for flag, name in (("lora_r", "r"), ("lora_alpha", "lora_alpha"), ("lora_bias", "bias")):
        if (value := getattr(config, name)) != saved.get(name, value):
            raise ValueError(
                f"--{flag} is {value!r}, but {folder} was trained with {saved[name]!r}; give that, or another"
                " --output_dir"
            )
