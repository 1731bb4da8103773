"""Positions of generated tokens: they continue from the prompt's end, not from the position of its last token.

Overrides the one method that transformers' generation loop calls after every step.
"""

from __future__ import annotations

from typing import Any

import torch


class ImagePositionsMixin:
    """For a model whose `generate` gets `next_positions`, int64 (B,): the first new position of each prompt."""

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Updates as transformers does, from the last position; corrects it once, right after the prompt."""
        start = model_kwargs.pop("next_positions", None)
        before = None if start is None else model_kwargs["position_ids"].shape[1]
        model_kwargs = super()._update_model_kwargs_for_generation(  # type: ignore[misc]
            outputs, model_kwargs, *args, **kwargs
        )
        if start is not None:
            new = model_kwargs["position_ids"][:, before:]
            new.copy_(start[:, None] + torch.arange(new.shape[1], device=new.device))
        return model_kwargs
