"""Prompts with their images in place, run through the language model in pieces of bounded size."""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.splice import check_spans, splice_row, stack_embeds
from llava.model.vision.image_tokens import ImageTokens
from llava.serve.engine.slots import SlotCache
from qlip.attention import in_window
from qlip.decoder_masks import layer_windows, mask_with_bias, unwrap_single
from qlip.language_positions import BIASABLE, ImageSpan, key_bias, place_tokens


@dataclass(frozen=True)
class PlacedPrompt:
    """One prompt of T tokens with its images in place, of which the last N are to be run."""

    embeds: Tensor
    """(N, D)."""
    positions: Tensor
    """(T,) on the CPU, float32 where an image's are fractional."""
    sizes: Tensor
    """float32 (T,) on the CPU: the weight of each token as a key, see `Placed`; 1 on text."""
    end: int
    """Position of the next token."""

    def continue_by(self, embeds: Tensor) -> PlacedPrompt:
        """Places text, (N, D), after a prompt that has been run."""
        more = torch.arange(self.end, self.end + len(embeds))
        positions, sizes = torch.cat([self.positions, more]), torch.cat([self.sizes, torch.ones_like(more)])
        return PlacedPrompt(embeds, positions, sizes, self.end + len(embeds))


SHAPING = (
    *("min_length", "min_new_tokens", "exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id"),
    *("no_repeat_ngram_size", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias"),
    *("remove_invalid_values", "guidance_scale", "watermarking_config"),
)
"""Fields of a checkpoint's generation config by which transformers' `generate` changes logits."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id"), (None,)),  # 0 is a token
    "guidance_scale": (None, 1),
}
"""Values of these fields with which it does not; for the other fields None, 0, False and empty values."""


CHANGING_ROTATIONS = ("dynamic", "longrope")
"""transformers' rotary embeddings that choose their frequencies by the longest position of the whole batch."""


def rotates_by_length(model: Any) -> bool:
    """Whether rows of one batch change each other: the longest decides on the rotary frequencies of all."""
    config = model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    rotations = getattr(text, "rope_parameters", None) or {}
    kinds = [kind for kind in rotations.values() if isinstance(kind, dict)] or [rotations]
    return any(kind.get("rope_type", "default") in CHANGING_ROTATIONS for kind in kinds)


def can_continue(model: Any) -> bool:
    """Whether a model's prompts can be run here.

    Its attention must take a separate mask for each row and layer, the rows must not change each other's rotary
    frequencies, and its generation config must not ask for what transformers' `generate` alone does.
    """
    config = getattr(model, "generation_config", None)
    values = [(name, getattr(config, name, None)) for name in SHAPING]
    shaped = any(value not in NEUTRAL[name] if name in NEUTRAL else bool(value) for name, value in values)
    return getattr(model.config, "_attn_implementation", None) in BIASABLE and not (shaped or rotates_by_length(model))


def place_prompt(
    model: Any, ids: Tensor, images: Sequence[ImageTokens], known: int = 0, spans: Sequence[ImageSpan] = ()
) -> PlacedPrompt:
    """Embeds a prompt with its images in place.

    Args:
        model: A LLaVA model.
        ids: int64 (L,), IMAGE_TOKEN_INDEX where an image goes.
        images: The prompt's images, projected; without those among the known elements.
        known: How many of the first elements have keys and values already; they are placed, but not embedded.
        spans: Spans of the images among the known elements.
    """
    check_spans(model.config, images)
    new = ids[known:].cpu()
    text = new.masked_fill(new == IMAGE_TOKEN_INDEX, 0).to(model.device)
    embeds, stacked = stack_embeds(model.get_input_embeddings()(text), images)
    row = splice_row(new, 0, stacked)
    is_image = row.is_image
    if known:
        before = ids[:known].cpu() == IMAGE_TOKEN_INDEX
        counts = torch.ones(known, dtype=torch.int64)
        counts[before] = torch.tensor([span.count for span in spans], dtype=torch.int64)
        is_image = torch.cat([before.repeat_interleave(counts), is_image])
    placed = place_tokens(is_image, [*spans, *row.spans])
    return PlacedPrompt(embeds[row.sources.to(embeds.device)], placed.positions, placed.sizes, int(placed.end))


def bias_prompts(model: Any, prompts: Sequence[PlacedPrompt]) -> Tensor | None:
    """Computes the bias on the keys of prompts, float32 (B, K); None if there is no bias."""
    sizes = pad_sequence([prompt.sizes for prompt in prompts], True, 1.0)
    bias = key_bias(sizes, model.config._attn_implementation)
    return None if bias is None else bias.to(model.device)


def prefill(
    model: Any, prompts: Sequence[PlacedPrompt], cache: SlotCache, most_tokens: int = sys.maxsize
) -> Generator[None, None, Tensor]:
    """Runs prompts through the language model; yields between pieces of at most `most_tokens` tokens.

    Args:
        model: A LLaVA model.
        prompts: One for each row of the cache.
        cache: Holds the known tokens of each prompt, and then all of them.
        most_tokens: Largest number of tokens of a piece, of all prompts together, padding included.

    Returns:
        Next-token logits of each prompt, (B, V).
    """
    left = [len(prompt.embeds) for prompt in prompts]
    embeds = pad_sequence([prompt.embeds for prompt in prompts], True, 0.0, "left")
    places = [prompt.positions[len(prompt.positions) - n :] for prompt, n in zip(prompts, left, strict=True)]
    fractional = any(place.is_floating_point() for place in places)
    positions = pad_sequence([place.float() if fractional else place for place in places], True, 0, "left")
    positions, bias = positions.to(model.device), bias_prompts(model, prompts)
    cache.reserve(len(prompts), max(len(prompt.positions) for prompt in prompts))  # once, not piece by piece
    width = embeds.shape[1]
    pieces = -(-width // max(1, most_tokens // len(prompts)))
    borders = [width * piece // pieces for piece in range(pieces + 1)]
    for start, end in pairwise(borders):
        counts = [max(0, min(n - (width - end), end - start)) for n in left]  # a short prompt is in the last pieces
        columns = slice(start, end)
        logits = run_tokens(model, cache, counts, bias, positions[:, columns], inputs_embeds=embeds[:, columns])
        if end < width:
            yield
    return logits


def run_tokens(
    model: Any, cache: SlotCache, counts: Sequence[int], bias: Tensor | None, positions: Tensor, **inputs: Tensor
) -> Tensor:
    """Runs the next tokens of each row through the language model.

    Args:
        model: A LLaVA model.
        cache: Keys and values of the tokens before them; when this returns, also of the new tokens.
        counts: New tokens of each row, padded on the left to Q.
        bias: float32 (B, K0), of the first keys; None if there is no bias.
        positions: (B, Q).
        **inputs: `input_ids` (B, Q) or `inputs_embeds` (B, Q, D).

    Returns:
        Next-token logits of each row, (B, V).
    """
    writing, queries = cache.begin(counts), max(counts)
    ends = torch.tensor([length + count for length, count in zip(cache.lengths, counts, strict=True)])
    places = ends[:, None] - queries + torch.arange(queries)  # before the start on padding
    masks = attention_masks(model, places.to(model.device), writing.end, bias)
    logits = last_logits(model, cache, masks, positions, **inputs)
    cache.advance()
    return logits


def last_logits(model: Any, cache: SlotCache, masks: Any, positions: Tensor, **inputs: Tensor) -> Tensor:
    """Runs new tokens, whose places the cache knows, through the language model; see `run_tokens`.

    Args:
        model: A LLaVA model.
        cache: Writes their keys and values.
        masks: From `attention_masks`.
        positions: (B, Q).
        **inputs: `input_ids` (B, Q) or `inputs_embeds` (B, Q, D).

    Returns:
        Next-token logits of each row, (B, V).
    """
    result = model(
        attention_mask=masks,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        **inputs,
    )
    return result.logits[:, -1]


def attention_masks(model: Any, places: Tensor, keys: int, bias: Tensor | None) -> Any:
    """Builds the additive masks (B, 1, Q, K) of rows that are filled from their start.

    Args:
        model: Its language model's windows and type are read.
        places: int64 (B, Q), where each query's own key is.
        keys: K.
        bias: float32 (B, K0), of the first keys; None if there is no bias.

    Returns:
        A mask, or one for each kind of layer where their windows differ.
    """
    distance = places[:, :, None] - torch.arange(keys, device=places.device)  # (B, Q, K)
    bias = torch.zeros(len(places), 0, device=places.device) if bias is None else bias
    masks = {}
    for kind, window in layer_windows(model.config.get_text_config()).items():
        masks[kind] = mask_with_bias(in_window(distance, window)[:, None], bias, model.dtype)
    return unwrap_single(masks)
