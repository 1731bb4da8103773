"""Warns if LLaVA would choose another prompt template: it guesses by the folder's name, we do not."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

from llava.conversation import conv_templates
from llava.mm_utils import get_model_name_from_path

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
    """Warns once if a checkpoint names no template and LLaVA would use another one than `conv_mode`.

    It does not warn where LLaVA guesses "llava_v1": LLaVA-1.5 was trained with "vicuna_v1", and LLaVA's evaluation
    scripts pass that.

    Args:
        model_path: Folder or hub id.
        config: Config of the loaded model; one without `mm_vision_tower` is not in LLaVA's format.
        conv_mode: The template in use.
    """
    guess = guess_template(get_model_name_from_path(model_path))
    if config.conv_mode is None and config.mm_vision_tower is not None and guess != "llava_v1":
        _warn(model_path, conv_mode, guess)


@lru_cache
def _warn(model_path: str, conv_mode: str, guess: str) -> None:
    if conv_templates[guess] == conv_templates[conv_mode]:
        return
    logger.warning(
        "the prompt template is %r, since %s names none (conv_mode in config.json); LLaVA would take %r, by the name:"
        " choose with --conv-mode",
        conv_mode,
        model_path,
        guess,
    )
