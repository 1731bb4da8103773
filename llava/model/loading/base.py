"""Finds the base model of a projector or LoRA checkpoint."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from llava.command import names_folder
from llava.model.loading.checkpoint import Checkpoint, find_kind
from llava.model.loading.folder import local_folder

logger = logging.getLogger(__name__)


def find_base(
    checkpoint: Checkpoint, model_path: str | Path, model_base: str | Path | None, hub: dict[str, Any]
) -> Path:
    """Finds the folder that holds the tokenizer and the language model of a checkpoint.

    Raises:
        FileNotFoundError: no such base model.
        ValueError: the checkpoint is on a base model, and none is given; or the two are swapped.
    """
    if checkpoint.kind == "full":
        if model_base is not None:
            check_unneeded_base(str(model_base))
            logger.warning("%s has all weights: the base model %s is not used", model_path, model_base)
        return checkpoint.folder
    if model_base is None:
        raise ValueError(
            f"{model_path} is a {checkpoint.kind} checkpoint: it needs its language model; give model_base"
            " (--model-base)"
        )
    return local_folder(str(model_base), **hub)


def check_unneeded_base(model_base: str) -> None:
    """Checks the base given for a whole model, which is not used, as far as this machine can tell what it is.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is a LoRA or a projector.
    """
    if names_folder(model_base):
        local_folder(model_base)
    if Path(model_base).is_dir() and (kind := find_kind(Path(model_base))) != "full":
        raise ValueError(
            f"{model_base}, given as the base model, is a {kind} checkpoint; it must be a whole model: swap"
            " --model-path and --model-base"
        )
