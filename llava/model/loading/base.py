"""Finds the base model of a projector or LoRA checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

from llava.command import names_folder
from llava.model.loading.checkpoint import Checkpoint, find_kind
from llava.model.loading.folder import local_folder

logger = logging.getLogger(__name__)

ADDED_BY_TRAINING = 4
"""Most rows that LLaVA's training adds: a padding token, and three tokens of images."""
EMBEDDINGS = ("embed_tokens.weight", "wte.weight")
"""Ends the name of a vocabulary's table."""


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
    base = local_folder(str(model_base), **hub)
    if (kind := find_kind(base)) != "full":
        raise ValueError(f"{base}, given as the base model, is a {kind} checkpoint; it must be a whole model")
    return base


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


def warn_of_vocabulary(folder: Path, rows: int, base: Path, known: int, given: Collection[str]) -> None:
    """Warns where a base lacks more rows of a checkpoint's vocabulary than training adds, and nothing gives them.

    Args:
        folder: the checkpoint.
        rows: of its vocabulary.
        base: the base model.
        known: rows of that one's.
        given: names of the weights that the checkpoint holds whole.
    """
    if rows - known > ADDED_BY_TRAINING and not any(name.endswith(EMBEDDINGS) for name in given):
        logger.warning(
            "%s has a vocabulary of %d, its base %s of %d, and nobody gives the missing rows, which become the mean of"
            " the others; is it the base that was trained on?",
            folder, rows, base, known,
        )  # fmt: skip
