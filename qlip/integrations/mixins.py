"""Generation behind images: new tokens stand behind the prompt's last image, not behind that image's last leaf.

Knows transformers' generation loop by the one method that it calls after every step.
"""

from __future__ import annotations

from typing import Any

import torch


class ImagePositionsMixin:
    """Mixed into a model whose `generate` is given `next_positions`, int64 (B,): where each prompt goes on."""

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """transformers' own, which counts on from the last position; right after the prompt it is corrected, once."""
        start = model_kwargs.pop("next_positions", None)
        before = None if start is None else model_kwargs["position_ids"].shape[1]
        model_kwargs = super()._update_model_kwargs_for_generation(  # type: ignore[misc]
            outputs, model_kwargs, *args, **kwargs
        )
        if start is not None:
            new = model_kwargs["position_ids"][:, before:]
            new.copy_(start[:, None] + torch.arange(new.shape[1], device=new.device))
        return model_kwargs
