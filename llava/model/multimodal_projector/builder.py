"""The projector from the tower's features to the language model's embeddings."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

MLP = re.compile(r"mlp([1-9]\d*)x_gelu")


def build_vision_projector(config: Any, delay_load: bool = False, **kwargs: Any) -> nn.Module:
    """Builds a projector of LLaVA's types, with LLaVA's parameter names.

    Args:
        config: a `LlavaConfig`, or another object with `mm_hidden_size`, `hidden_size` and, unless it is "linear",
            `mm_projector_type`: "linear"; "mlp<N>x_gelu", N linear layers with GELU in between; "identity".
        delay_load: accepted for LLaVA's callers, like any other keyword; not read.

    Raises:
        ValueError: an unknown type, or "identity" between different widths.
    """
    projector_type = getattr(config, "mm_projector_type", "linear")  # configs of forks need not name it
    check_projector_type(projector_type)
    vision_width, text_width = config.mm_hidden_size, config.hidden_size
    if projector_type == "linear":
        return nn.Linear(vision_width, text_width)
    if match := MLP.fullmatch(projector_type):
        layers: list[nn.Module] = [nn.Linear(vision_width, text_width)]
        layers += [layer for _ in range(int(match[1]) - 1) for layer in (nn.GELU(), nn.Linear(text_width, text_width))]
        return nn.Sequential(*layers)
    if vision_width != text_width:
        raise ValueError(f"mm_projector_type 'identity' needs equal widths; they are {vision_width}, {text_width}")
    return nn.Identity()


def check_projector_type(projector_type: str) -> None:
    """Raises ValueError unless the type is one of LLaVA's."""
    if projector_type not in ("linear", "identity") and not MLP.fullmatch(str(projector_type)):
        raise ValueError(
            f"mm_projector_type is {projector_type!r}; allowed are 'linear', 'mlp<N>x_gelu' and 'identity'"
        )
