"""Chooses the prompt template of a checkpoint that names none, and warns where LLaVA would choose another."""

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


TYPES = {"llava_mistral": "mistral_instruct", "llava_mpt": "mpt", "llava_qwen": "qwen_1_5"}
"""`model_type` -> the template that its checkpoints were trained with."""

NAMES = {
    "llama-2": "llava_llama_2",
    "llama-3": "llava_llama_3",
    "llama3": "llava_llama_3",
    "v1.6-34b": "chatml_direct",
}
"""Part of the name of a model on Llama -> its template; the configuration does not tell these from Vicuna."""


def default_template(config: Any) -> str:
    """Finds the template of a language model's type; LLaVA v1.5's "vicuna_v1" for Llama."""
    return TYPES.get(str(getattr(config, "model_type", None)), "vicuna_v1")


def choose_template(model_path: str, config: Any) -> str:
    """Chooses the template of a checkpoint: what its config.json says, else by its type, else by its name.

    Args:
        model_path: Folder or hub id.
        config: Config of the loaded model.
    """
    if config.conv_mode is not None:
        return config.conv_mode
    template = default_template(config)
    if template != "vicuna_v1" or not config.has_tower:
        return template
    name = get_model_name_from_path(model_path).lower()
    return next((own for part, own in NAMES.items() if part in name), template)


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
    is_known = config.conv_mode is not None or choose_template(model_path, config) != "vicuna_v1"
    if not is_known and config.mm_vision_tower is not None and guess != "llava_v1":
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
