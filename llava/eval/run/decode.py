"""Generates a batch's answers token by token: what prompts share runs once, and answers that have ended leave.

transformers' `generate` runs every prompt in full, and ended rows until the last one ends. Answers to questions differ
much in length, and several questions about one image begin alike up to its last token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import DynamicCache

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.splice import splice_row
from llava.model.vision.image_tokens import ImageTokens
from llava.serve.engine.generate import Row, append_token, make_sampler
from llava.serve.engine.prefill import can_continue
from llava.serve.engine.sampling import RowSampler
from qlip.decoder_masks import layer_windows
from qlip.language_positions import Placed, key_bias, place_tokens

STAY = 0.75
"""Ended rows are removed once at most this share of the batch's rows is left: a removal copies the others' keys."""

WORTH = 0.8
"""What prompts share is run once if this lowers the number of tokens to this share at least."""


@dataclass(frozen=True)
class Prompt:
    """One prompt of T tokens with its image in place."""

    embeds: Tensor
    """(T, D)."""
    placed: Placed
    """Positions and weights of (T,)."""
    shared: int
    """Tokens up to the last one of the image, which other questions about it may share; 0 without an image."""
    key: object
    """Equal for prompts that begin with the same `shared` tokens."""


@dataclass(frozen=True)
class Batch:
    """Prompts in two blocks of columns, each padded on the left: P that rows of a group share, S of their own."""

    embeds: Tensor
    """(B, P + S, D)."""
    mask: Tensor
    """int64 (B, P + S), 1 on tokens."""
    positions: Tensor
    """(B, P + S)."""
    bias: Tensor | None
    """float32 (B, P + S), added to the attention logits of keys; None for none."""
    width: int
    """P."""
    groups: Tensor
    """int64 (B,): row -> its group, numbered by first rows."""
    leaders: Tensor
    """int64 (G,): the first row of each group."""


def can_decode(model: Any, rows: Sequence[Row]) -> bool:
    """Whether `decode_rows` gives the answers of `generate_rows`: no beams, no log-probabilities, plain attention."""
    windows = layer_windows(model.config.get_text_config()).values()
    return (
        can_continue(model)
        and not any(windows)  # a window would count the columns of padding
        and all(row.sampling.num_beams == 1 and row.sampling.logprobs is None for row in rows)
    )


@torch.inference_mode()
def decode_rows(model: Any, rows: Sequence[Row], images: Sequence[ImageTokens | None]) -> None:
    """Generates the answers of a batch through the rows' `take`; errors of the model are raised.

    Args:
        model: a LLaVA model for which `can_decode` holds.
        rows: the prompts, each with at most one image.
        images: each row's, projected; the same object for prompts about the same image.
    """
    prompts = [embed_prompt(model, row.prompt, image) for row, image in zip(rows, images, strict=True)]
    batch = lay_out(prompts, model.config._attn_implementation)
    cache, logits = _prefill(model, batch)
    sampler = make_sampler(model, rows, logits.device)
    left = torch.arange(len(rows))  # indices stay on the CPU: a device map may spread the cache over devices
    said = left.new_zeros(len(rows), 0).to(logits.device)
    mask, bias, next_ = batch.mask, batch.bias, torch.stack([prompt.placed.end for prompt in prompts])
    while True:
        tokens = _choose(sampler, said, logits, left)
        for row, token in zip(left.tolist(), tokens.tolist(), strict=True):
            append_token(rows[row], token)
        said = F.pad(said, (0, 1))
        said[left, -1] = tokens
        alive = [place for place, row in enumerate(left.tolist()) if not rows[row].finished()]
        if not alive:
            return
        if len(alive) <= STAY * len(left):
            kept = torch.tensor(alive)
            cache.batch_select_indices(kept)
            left, tokens, mask, next_ = left[kept], tokens[kept], mask[kept], next_[kept]
            bias = None if bias is None else bias[kept]
        mask = F.pad(mask, (0, 1), value=1)
        logits = _run(model, cache, mask, next_[:, None], bias, input_ids=tokens[:, None])
        next_ = next_ + 1


def embed_prompt(model: Any, ids: Tensor, image: ImageTokens | None) -> Prompt:
    """Embeds a prompt, int64 (L,), with its image in place of IMAGE_TOKEN_INDEX."""
    ids = ids.to(model.device)
    embeds = model.get_input_embeddings()(ids.masked_fill(ids == IMAGE_TOKEN_INDEX, 0))
    row = splice_row(ids, embeds, [] if image is None else [image])
    placed = place_tokens(row.is_image, row.spans)
    if image is None:
        return Prompt(row.embeds, placed, 0, object())
    end = int((ids == IMAGE_TOKEN_INDEX).nonzero()[0, 0])
    return Prompt(row.embeds, placed, end + image.span.count, (tuple(ids[:end].tolist()), id(image)))


def lay_out(prompts: Sequence[Prompt], attention: str) -> Batch:
    """Pads prompts to a batch whose first columns are those that prompts share, if it is worth it.

    Args:
        prompts: of a batch.
        attention: transformers' name of the model's attention.
    """
    numbers: dict[object, int] = {}
    groups = [numbers.setdefault(prompt.key, len(numbers)) for prompt in prompts]
    leaders = [groups.index(number) for number in range(len(numbers))]
    lengths = [len(prompt.embeds) for prompt in prompts]
    width = max(prompt.shared for prompt in prompts)
    rest = max(length - prompt.shared for length, prompt in zip(lengths, prompts, strict=True))
    whole, apart = len(prompts) * max(lengths), len(leaders) * width + len(prompts) * rest
    if apart > WORTH * whole or not all(prompt.shared for prompt in prompts):
        prompts, width = [replace(prompt, shared=0) for prompt in prompts], 0
    fractional = any(prompt.placed.positions.is_floating_point() for prompt in prompts)
    positions = [prompt.placed.positions.float() if fractional else prompt.placed.positions for prompt in prompts]
    ends = [prompt.shared for prompt in prompts]
    sizes = _pad([prompt.placed.sizes for prompt in prompts], ends, 1.0)
    return Batch(
        _pad([prompt.embeds for prompt in prompts], ends, 0.0),
        _pad([torch.ones_like(own, dtype=torch.int64) for own in positions], ends, 0),
        _pad(positions, ends, 0),
        key_bias(sizes, attention),
        width,
        torch.tensor(groups),
        torch.tensor(leaders),
    )


def _pad(sequences: Sequence[Tensor], ends: Sequence[int], padding: float) -> Tensor:
    """Pads sequences on the left, what is before their `ends` and what is behind apart."""
    parts = [own[:end] for own, end in zip(sequences, ends, strict=True)]
    rests = [own[end:] for own, end in zip(sequences, ends, strict=True)]
    return torch.cat([pad_sequence(each, True, padding, "left") for each in (parts, rests)], dim=1)


def _prefill(model: Any, batch: Batch) -> tuple[DynamicCache, Tensor]:
    """Runs all prompts: their keys and values, and the logits behind each, (B, V)."""
    cache, width = DynamicCache(config=model.config), batch.width
    if width:
        first = batch.leaders
        bias = None if batch.bias is None else batch.bias[first, :width]
        embeds = batch.embeds[first, :width]
        _run(model, cache, batch.mask[first, :width], batch.positions[first, :width], bias, inputs_embeds=embeds)
        cache.batch_select_indices(batch.groups)
    embeds = batch.embeds[:, width:]
    logits = _run(model, cache, batch.mask, batch.positions[:, width:], batch.bias, inputs_embeds=embeds)
    return cache, logits


def _run(
    model: Any, cache: DynamicCache, mask: Tensor, positions: Tensor, bias: Tensor | None, **inputs: Tensor
) -> Tensor:
    """Runs new tokens behind those in the cache: the logits of the last one of each row, (B, V)."""
    known = {"attention_mask": mask, "position_ids": positions, "key_bias": bias, "past_key_values": cache}
    return model(**known, use_cache=True, logits_to_keep=1, **inputs).logits[:, -1].to(mask.device)


def _choose(sampler: RowSampler, said: Tensor, logits: Tensor, left: Tensor) -> Tensor:
    """Chooses the next token, int64 (len(left),), of the rows that are left."""
    logits = logits.float()
    if len(left) == len(said):
        return sampler(said, logits).argmax(-1)
    scores = logits.new_zeros(len(said), logits.shape[1])  # each row keeps its number, and so its settings
    scores[left] = logits
    return sampler(said, scores)[left].argmax(-1)
