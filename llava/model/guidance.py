"""The default negative prompt of classifier-free guidance (`guidance_scale`)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.generation_settings import find_option


def add_negative_prompt(
    options: dict[str, Any], config: Any, prompt: Tensor, attention_mask: Tensor | None
) -> dict[str, Any]:
    """Adds transformers' default of `negative_prompt_ids`, which generation from embeddings lacks.

    By default transformers guides away from the last token of the prompt. It takes that token from the token
    ids, which are missing when embeddings are given.

    Args:
        options: arguments of `generate`.
        config: the model's generation config, for what `options` and a generation config among them leave out.
        prompt: int64 (B, L), IMAGE_TOKEN_INDEX where an image goes.
        attention_mask: (B, L), nonzero on real tokens; None if all are.

    Returns:
        The options with `negative_prompt_ids`, int64 (B * rows of an answer, 1), the last text token of each prompt; as
        they are without guidance, and where they hold a negative prompt.

    Raises:
        ValueError: with guidance, a prompt has no text.
    """
    names = ("guidance_scale", "num_beams", "num_return_sequences")
    scale, beams, answers = (find_option(name, options, config) for name in names)
    if scale in (None, 1) or options.get("negative_prompt_ids") is not None:
        return options
    text = prompt != IMAGE_TOKEN_INDEX
    if attention_mask is not None:
        text = text & (attention_mask != 0).to(text.device)
    if not text.any(1).all():
        raise ValueError("guidance_scale needs text in each prompt, or negative_prompt_ids; one prompt has only images")
    last = text.shape[1] - 1 - text.flip(1).int().argmax(1, keepdim=True)
    tokens = prompt.gather(1, last).repeat_interleave(max(beams or 1, answers or 1), 0)
    return options | {"negative_prompt_ids": tokens}
