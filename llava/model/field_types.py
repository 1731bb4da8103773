"""Checks the types of a configuration's fields, so that a wrong one is named before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.activations import ACT2FN

TEXTS = ("image_aspect_ratio", "conv_mode")
FLAGS = ("mm_use_im_start_end", "mm_use_im_patch_token", "s2", "output_hidden_states")
LENGTHS = ("tokenizer_model_max_length", "max_sequence_length")
SIZES = frozenset(
    ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
    + ["num_key_value_heads", "head_dim", "max_position_embeddings", "image_size", "patch_size", "num_channels"]
    + ["d_model", "n_heads", "n_layers", "max_seq_len"]
)
"""Sizes of language models and towers. transformers checks that they are integers, not that they are positive."""


def check_types(config: Any) -> None:
    """Checks the types of the fields that LLaVA adds; those that have a few allowed values are checked elsewhere.

    Args:
        config: a length that is written as 2048.0 becomes 2048, and a flag that is 0 or 1 becomes false or true.

    Raises:
        ValueError: a field has another type.
    """
    _require("mm_vision_tower", config, (str,), "a name or null")
    _require("mm_vision_config", config, (dict,), "an object")
    for name in TEXTS:
        _require(name, config, (str,), "text or null")
    for name in FLAGS:
        if type(value := getattr(config, name)) is int and value in (0, 1):
            setattr(config, name, bool(value))
        _require(name, config, (bool,), "true, false or null")
    for name in LENGTHS:
        if isinstance(value := getattr(config, name), float) and value.is_integer():
            setattr(config, name, int(value))
        _require(name, config, (int,), "a number of tokens or null", least=0)
    _require("mm_hidden_size", config, (int,), "a positive integer or null", least=1)
    if type(config.mm_vision_select_layer) is not int:
        raise ValueError(f"mm_vision_select_layer is {config.mm_vision_select_layer!r}; it must be an integer")
    if not (config.qlip is None or isinstance(config.qlip, (bool, dict))):
        raise ValueError(f"qlip is {config.qlip!r}; allowed are true, false, null and an object of QLIP settings")


def check_sizes(values: Mapping[str, Any]) -> None:
    """Raises ValueError if a language model or a tower has a size that is not positive."""
    for name, size in values.items():
        if name in SIZES and isinstance(size, int) and size < 1:
            raise ValueError(f"{name} is {size!r}; it must be positive")


def check_language_model(config: Any) -> None:
    """Checks the fields of a language model that transformers takes unseen and fails on while it builds the model.

    Raises:
        ValueError: a field is wrong.
    """
    activation = getattr(config, "hidden_act", None)
    if activation is not None and not (isinstance(activation, str) and activation in ACT2FN):
        raise ValueError(f"hidden_act is {activation!r}; allowed are transformers' activations, such as 'silu'")
    rope = getattr(config, "rope_parameters", None)
    if not (rope is None or isinstance(rope, Mapping)):
        raise ValueError(f"rope_parameters is {rope!r}; it must be an object")
    kinds = [part for part in (rope or {}).values() if isinstance(part, Mapping)]  # of layers, each with its own
    for part in [rope or {}, *kinds]:
        theta = part.get("rope_theta", 1)
        if type(theta) not in (int, float) or not theta > 0:
            raise ValueError(f"rope_theta is {theta!r}; it must be a positive number")


def check_quantization(settings: Any) -> None:
    """Raises ValueError unless a config.json's `quantization_config` is an object or null."""
    if settings is not None and not isinstance(settings, dict):
        raise ValueError(f"quantization_config is {settings!r}; it must be an object or null")


def _require(name: str, config: Any, kinds: tuple[type, ...], allowed: str, least: int | None = None) -> None:
    value = getattr(config, name)
    if value is not None and (type(value) not in kinds or (least is not None and value < least)):
        raise ValueError(f"{name} is {value!r}; it must be {allowed}")
