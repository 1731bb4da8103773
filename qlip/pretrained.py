"""Loads the vision tower of `qlip fit` and `qlip bias` from a checkpoint; its errors are one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import CLIPVisionModelWithProjection, PreTrainedConfig
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # 5.17's package asks torchvision
from transformers.utils import logging

from qlip.command import names_folder
from qlip.config import QLIPConfig
from qlip.encoder import QLIPVisionModel

LLAVA_TYPES = ("llava", "llava_llama", "llava_mistral", "llava_mpt", "llava_qwen")
"""Model types of checkpoints whose tower `scripts.extract_tower` writes."""

LOAD_ERRORS = (OSError, RuntimeError, SafetensorError, StrictDataclassError, UnpicklingError)
"""What transformers raises for missing or damaged files, and for configurations with impossible values."""

Result = TypeVar("Result")


def load_tower(path: str) -> QLIPVisionModel:
    """Loads a tower in float32, with the default settings even if an attached model saved others beside it.

    Args:
        path: a CLIP, SigLIP or DINOv2 checkpoint: a folder or a hub id.

    Raises:
        ValueError: there is none, or it is damaged or of another kind.
    """
    if not Path(path).is_dir() and names_folder(path):
        raise ValueError(f"no tower can be loaded from {path!r}: there is no such folder")
    if _model_type(path) in LLAVA_TYPES:
        raise ValueError(
            f"{path} is a whole LLaVA checkpoint, not a vision tower; write its tower with `python -m"
            f" scripts.extract_tower --model-path {path} --out TOWER` and give TOWER"
        )
    return _read(path, lambda: QLIPVisionModel.from_pretrained(path, QLIPConfig(), dtype=torch.float32))


def load_image_processor(path: str) -> Any:
    """Loads the image processor of a checkpoint that `load_tower` reads.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    return _read(path, lambda: AutoImageProcessor.from_pretrained(path))


def load_projection(path: str, needed: str = "--loss projected", instead: str = "--loss distance") -> nn.Linear:
    """Loads CLIP's `visual_projection` in float32 from a checkpoint that `load_tower` reads.

    Args:
        path: the checkpoint.
        needed: the flag that needs it.
        instead: the flag that does not.

    Raises:
        ValueError: the checkpoint has none.
    """
    kind = _model_type(path)
    missing: set[str] | list[str] = ["visual_projection.weight"]
    if kind in ("clip", "clip_vision_model"):
        load = CLIPVisionModelWithProjection.from_pretrained
        model, info = _read(path, lambda: load(path, dtype=torch.float32, output_loading_info=True))
        missing = info["missing_keys"]
    if "visual_projection.weight" in missing:
        raise ValueError(
            f"{path}, of type {kind!r}, has no visual_projection.weight, which {needed} needs;"
            f" give a whole CLIP checkpoint, or {instead}"
        )
    return model.visual_projection


def _model_type(path: str) -> Any:
    """Reads the model type from a checkpoint's config.json."""
    try:
        config = _read(path, lambda: PreTrainedConfig.get_config_dict(path)[0])
    except TypeError:  # transformers 5.17, of a config.json that is not an object
        config = None
    if not isinstance(config, dict) or "model_type" not in config:
        raise ValueError(f"no tower can be loaded from {path!r}: it has no config.json with a model_type")
    return config["model_type"]


def _read(path: str, load: Callable[[], Result]) -> Result:
    """Calls `load` without transformers' report on the weights of other parts, such as the text model."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return load()
    except LOAD_ERRORS as error:
        text = str(error)
        if isinstance(error, StrictDataclassError):
            text = " ".join(text.split())  # the first line alone names no value
        raise ValueError(
            f"no tower can be loaded from {path!r}: {(text.splitlines() or [type(error).__name__])[0]}"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
