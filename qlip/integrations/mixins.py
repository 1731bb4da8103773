"""Positions of generated tokens: they continue from the prompt's end, not from the position of its last token.

Overrides the methods that transformers' generation loop calls before and after every step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

UNFIT: tuple[tuple[str, Any, str], ...] = (
    ("prefill_chunk_size", None, "a prompt with images runs whole"),
    ("token_healing", False, "transformers re-tokenizes the prompt from its text, which has no images"),
    ("encoder_repetition_penalty", 1.0, "transformers does not see the tokens of a prompt with images"),
    ("encoder_no_repeat_ngram_size", 0, "transformers does not see the tokens of a prompt with images"),
)
"""(option of `generate`, its neutral value, why other values do not work with images)."""


def refuse_options(model: Any, options: Mapping[str, Any], assistants: type | None = None) -> None:
    """Checks that options of `generate` work with images.

    Args:
        model: the model.
        options: of transformers' `generate`.
        assistants: the class that an assistant model must have; None takes no assistant.

    Raises:
        ValueError: the prompt would run in chunks, each with the positions of the whole; or an assistant would not take
            the positions of images.
    """
    config, assistant = options.get("generation_config") or model.generation_config, options.get("assistant_model")
    if options.get("cache_implementation", getattr(config, "cache_implementation", None)) == "paged":
        raise ValueError("cache_implementation is 'paged'; continuous batching takes token ids alone, leave it out")
    for name, neutral, why in UNFIT:
        value = options.get(name, getattr(config, name, None))
        if value is not None and value != neutral:
            raise ValueError(f"{name} is {value}; {why}, leave it out")
    if assistant is None:
        return
    if assistants is None:
        raise ValueError(
            "assistant_model is not supported by these classes; load the checkpoint by transformers' own and attach"
            " QLIP (qlip.attach, docs/TRANSFORMERS.md)"
        )
    if not isinstance(assistant, assistants):
        raise ValueError(
            f"assistant_model is a {type(assistant).__name__} without QLIP, which takes no positions of images;"
            " attach it as well (qlip.attach), or use prompt_lookup_num_tokens"
        )


def count_answers(model: Any, options: Mapping[str, Any]) -> int:
    """Counts the rows that transformers' `generate` makes of each prompt under options: beams, or answers."""
    config = options.get("generation_config") or model.generation_config
    names = ("num_beams", "num_return_sequences")
    return max(options.get(name, getattr(config, name, None)) or 1 for name in names)


class ImagePositionsMixin:
    """Mixed into a model whose `generate` gets `next_positions`, int64 (B,): the first new position of each prompt."""

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *args: Any, inputs_embeds: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Prepares inputs as transformers does, and embeds the candidates of assisted decoding after the prompt.

        Where the prompt is given as embeddings, transformers leaves the candidates out of the first step, and then
        reads the prompt's logits as theirs.
        """
        mask, places = kwargs.get("attention_mask"), kwargs.get("position_ids")
        if mask is not None and places is not None and len(mask) == 1 and mask.shape[-1] < places.shape[-1]:
            # transformers 5.17 cuts it to the tokens that it knows, in assisted decoding, which takes one prompt.
            kwargs["attention_mask"] = mask.new_ones(1, places.shape[-1])
        if inputs_embeds is not None and kwargs.get("is_first_iteration"):
            cache, known = kwargs.get("past_key_values"), inputs_embeds.shape[1]
            past = 0 if cache is None else int(cache.get_seq_length())
            if past and kwargs.get("next_sequence_length") is None:  # of assisted decoding
                kwargs["next_sequence_length"] = input_ids.shape[1] - past
            if input_ids.shape[1] > known > 0:
                candidates = self.get_input_embeddings()(input_ids[:, known:])  # type: ignore[attr-defined]
                inputs_embeds = torch.cat([inputs_embeds, candidates.to(inputs_embeds)], dim=1)
                if (start := kwargs.get("next_positions")) is not None:
                    kwargs["position_ids"] = kwargs["position_ids"].clone()
                    _place_after(start, kwargs["position_ids"][:, known:])
        return super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids, *args, inputs_embeds=inputs_embeds, **kwargs
        )

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
            _place_after(start, model_kwargs["position_ids"][:, before:])
        return model_kwargs


def _place_after(start: Tensor, positions: Tensor) -> None:
    """Writes consecutive positions (B, N), beginning at `start` (B,)."""
    positions.copy_(start[:, None] + torch.arange(positions.shape[1], device=positions.device))
