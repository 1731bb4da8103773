"""Warns where LLaVA would choose another prompt template for a checkpoint that names none."""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

from llava.conversation import conv_templates
from llava.mm_utils import get_model_name_from_path
from llava.model.loading.chat_template import is_answered_alike, read_chat_template, recognise, template_by_name

logger = logging.getLogger(__name__)

GUESSES = {
    "llama-2": "llava_llama_2",
    "mistral": "mistral_instruct",
    "v1.6-34b": "chatml_direct",
    "v1": "llava_v1",
    "mpt": "mpt",
}
"""Part of a model's name -> LLaVA's template for it; the first part that occurs decides."""


def guess_template(model_name: str) -> str:
    """Finds the template that LLaVA would use for a model of this name."""
    return next((template for part, template in GUESSES.items() if part in model_name.lower()), "llava_v0")


def warn_of_guess(model_path: str, config: Any, conv_mode: str) -> None:
    """Warns once if a checkpoint names no template and LLaVA, or its tokenizer, would use another one than `conv_mode`.

    A tokenizer's chat template is its language model's, which LLaVA may have been trained with or not.

    Args:
        model_path: Folder or hub id.
        config: Config of the loaded model; one without `mm_vision_tower` is not in LLaVA's format.
        conv_mode: The template in use.
    """
    if config.conv_mode is not None or config.mm_vision_tower is None:
        return
    differing = []
    if (guess := find_other_guess(model_path, config, conv_mode)) is not None:
        differing.append(f"LLaVA would take {guess!r}, by the name")
    own = read_tokenizers_template(model_path, config)
    if own is not None and not is_answered_alike(own, conv_mode):
        differing.append(f"its tokenizer's chat template is that of {own!r}")
    if differing:
        _warn(model_path, conv_mode, "; ".join(differing))


def find_other_guess(model_path: str, config: Any, conv_mode: str) -> str | None:
    """Finds the template that LLaVA would use in place of `conv_mode`; None where it is the same or a worse guess.

    LLaVA-1.5 was trained with "vicuna_v1", as its evaluation scripts state, not with the guess "llava_v1". A name that
    decides here is that of a model whose template is known, and Qwen is not among LLaVA's models.
    """
    guess = guess_template(get_model_name_from_path(model_path))
    is_known = config.model_type == "llava_qwen" or template_by_name(model_path, config) is not None
    is_trained_with = (guess, conv_mode) == ("llava_v1", "vicuna_v1")
    return None if is_known or is_trained_with or conv_templates[guess] == conv_templates[conv_mode] else guess


def read_tokenizers_template(model_path: str, config: Any) -> str | None:
    """Finds the template that the chat template of a local checkpoint's tokenizer follows; None for any other."""
    try:
        written = read_chat_template(Path(model_path)) if Path(model_path).is_dir() else None
        return None if written is None else recognise(written, config)
    except LookupError:
        return None


@lru_cache
def _warn(model_path: str, conv_mode: str, others: str) -> None:
    logger.warning(
        "the prompt template is %r, since %s names none (conv_mode in config.json); %s: choose with --conv-mode",
        conv_mode,
        model_path,
        others,
    )
