"""What training writes: the projector, adapters or a whole model, in LLaVA's files, and checkpoints that are whole."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import Trainer

from llava.model.loading.files import load_tensors, read_json, state_dtype
from llava.model.loading.folder import NON_LORA_FILE, PROJECTOR_FILE
from llava.model.loading.weights import llava_name
from llava.train.finite import check_finite
from llava.train.lora import simplify_adapter_config
from llava.train.throughput import gather_objects
from qlip.files import replacing

STAGING = ".saving"
"""Folder in the output folder where a checkpoint is written before it gets its name."""

TOTALS_FILE = "throughput.json"
"""File in a checkpoint with what the run has trained on so far."""

VISION_PARTS = ("mm_projector", "vision_tower")

CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def safe_save_model_for_hf_trainer(trainer: Trainer, output_dir: str) -> None:
    """Writes the trained model at the end of a run: the projector, adapters, or the whole model.

    Every process must call it.

    Raises:
        ValueError: a trained weight is not finite.
    """
    refuse_diverged(trainer)
    if trainer.is_deepspeed_enabled and torch.cuda.is_available():
        torch.cuda.synchronize()
    trainer.save_model(output_dir)


def refuse_diverged(trainer: Trainer) -> None:
    """Raises ValueError if a trained weight is not finite; every process must call it."""
    model: Any = trainer.model
    check_finite(model, trainer.state.global_step, checkpoints(str(trainer.args.output_dir)), gather_objects)


def read_totals(checkpoint: Path) -> dict[str, Any]:
    """Reads what a checkpoint says of its run in `TOTALS_FILE`; {} if it has none.

    Raises:
        ValueError: the file is damaged.
    """
    file = checkpoint / TOTALS_FILE
    return read_json(file) if file.is_file() else {}


def gather_parameter(parameter: Tensor) -> Tensor:
    """Copies a parameter to the CPU, whole where DeepSpeed ZeRO-3 shards it; then every process must call this."""
    if hasattr(parameter, "ds_id"):
        from deepspeed import zero

        with zero.GatheredParameters([parameter]):
            return parameter.detach().cpu().clone()
    if hasattr(parameter, "full_tensor"):  # a DTensor of FSDP 2
        return parameter.full_tensor().detach().cpu().clone()
    return parameter.detach().cpu().clone()


def projector_state(model: nn.Module) -> dict[str, Tensor]:
    """Gathers what stage 1 trains: projector, newline of tiles, and input embeddings if <im_start> is trained."""
    return {
        name: gather_parameter(parameter)
        for name, parameter in model.named_parameters()
        if "mm_projector" in name or "image_newline" in name or ("embed_tokens" in name and parameter.requires_grad)
    }


def adapter_state(model: Any) -> dict[str, Tensor]:
    """Gathers what an adapters' checkpoint holds: trained parameters, and frozen ones that its base may not have.

    These are the projector, the newline of tiles, and the input embeddings if <im_start> is used: a run may have read
    them from `--pretrain_mm_mlp_adapter`.
    """
    table = model.get_input_embeddings().weight if model.config.mm_use_im_start_end else None
    return {
        name: gather_parameter(parameter)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad or "mm_projector" in name or "image_newline" in name or parameter is table
    }


def save_projector(model: Any, state: Mapping[str, Tensor], folder: Path) -> None:
    """Writes config.json and mm_projector.bin."""
    folder.mkdir(parents=True, exist_ok=True)
    save_config(model, folder)
    save_tensors(state, folder / PROJECTOR_FILE)


def save_adapters(model: Any, state: Mapping[str, Tensor], folder: Path) -> None:
    """Writes config.json, the adapters, and the other weights (non_lora_trainables.bin).

    Args:
        model: in peft's wrapper.
        state: see `adapter_state`.
        folder: where to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_config(model.base_model.model, folder)
    # peft takes all biases with --lora_bias all; those of projector and tower are among the other weights.
    language = {name: tensor for name, tensor in state.items() if not any(part in name for part in VISION_PARTS)}
    model.save_pretrained(folder, state_dict=language, save_embedding_layers=False)
    simplify_adapter_config(folder)
    others = {llava_name(name): tensor for name, tensor in state.items() if "lora_" not in name}
    save_tensors(others, folder / NON_LORA_FILE)


def save_config(model: Any, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Writes config.json, for generation with a cache; the prior of a quadtree tower, too.

    Args:
        model: the model.
        folder: where to.
        dtype: that of the weights in the folder; None is the model's.
    """
    config = model.config
    tower = model.get_vision_tower()
    if tower is not None:
        tower.save_prior(folder)
    with cache_in_config(config):
        config.save_pretrained(folder)
    file = folder / "config.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    values.pop("quantization_config", None)  # of the base while it was trained on; no weights here are quantised
    if dtype is not None:
        values = state_dtype(values, dtype)
    file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def cache_in_config(config: Any) -> Iterator[None]:
    """Sets `use_cache` in the configuration while it is saved: training turns it off, generation needs it."""
    before, config.use_cache = config.use_cache, True
    try:
        yield
    finally:
        config.use_cache = before


def save_tensors(state: Mapping[str, Tensor], file: Path) -> None:
    """Writes tensors to a .bin file atomically; a crash leaves the old file."""
    with replacing(file) as new:
        torch.save(dict(state), new)


def load_trained(model: nn.Module, file: Path) -> None:
    """Copies a file's tensors into the parameters of the same names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds a tensor that the model has no place for.
    """
    own = {llava_name(name): parameter for name, parameter in model.named_parameters()}
    for name, tensor in load_tensors(file).items():
        if name not in own or own[name].shape != tensor.shape:
            expected = f"of shape {tuple(own[name].shape)}" if name in own else "nothing"
            raise ValueError(f"{file} holds {name!r} of shape {tuple(tensor.shape)}; the model has {expected} there")
        with torch.no_grad():
            own[name].copy_(shard_like(own[name], tensor))


def shard_like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """Takes this process's shard of a tensor where FSDP 2 shards the parameter; then every process must call it."""
    if not isinstance(parameter, DTensor):
        return tensor
    own_kind = tensor.to(parameter.device, parameter.dtype)
    return distribute_tensor(own_kind, parameter.device_mesh, parameter.placements)


def check_loaded(model: Any, result: Any) -> None:
    """Raises ValueError if a checkpoint lacked weights, with which transformers would train on after a warning.

    Args:
        model: the one that should have got them.
        result: what `load_state_dict` returned, or transformers' `load_sharded_checkpoint`.
    """
    tied = set(getattr(model, "all_tied_weights_keys", ()))
    # Of shards transformers compares the names in the files with the model's; the weights themselves have been read.
    read = {model.own_name(name) for name in result.unexpected_keys}
    if missing := set(result.missing_keys) - tied - read:
        raise ValueError(f"the checkpoint lacks {len(missing)} weights, for example {min(missing)!r}")


def checkpoints(output_dir: str | Path) -> list[Path]:
    """Lists the checkpoints in an output folder, the oldest first."""
    folder = Path(output_dir)
    found = [
        (int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := CHECKPOINT.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found) if path.is_dir()]


def finish_checkpoint(staged: Path, final: Path, limit: int | None, best: str | None) -> None:
    """Renames a fully written checkpoint to its final name, replacing an older one, and applies `rotate`."""
    if final.exists():
        shutil.rmtree(final)
    os.replace(staged, final)
    shutil.rmtree(staged.parent, ignore_errors=True)
    rotate(final.parent, limit, best)


def rotate(output_dir: str | Path, limit: int | None, best: str | None) -> None:
    """Deletes the oldest checkpoints beyond a limit; the best and the newest stay."""
    if limit is None or limit <= 0:
        return
    found = checkpoints(output_dir)
    kept = {path.resolve() for path in found[-1:]} | ({Path(best).resolve()} if best else set())
    for path in found[: max(0, len(found) - limit)]:
        if path.resolve() not in kept:
            shutil.rmtree(path, ignore_errors=True)
