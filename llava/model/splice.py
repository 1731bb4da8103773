"""Places ragged image tokens among text embeddings and makes one padded batch of it. Pure functions.

Knows nothing of towers, tokenisers or generation. Positions follow docs/METHOD.md: an image takes `span` positions, its
tokens stand at their own places within it, and the next text token stands `span` after the image's start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model.multimodal_encoder.base import ImageTokens

PER_TOKEN = ("embeds", "positions", "labels", "sizes", "is_image")


@dataclass(frozen=True)
class PlacedRow:
    """One prompt with its images in place; T tokens."""

    embeds: Tensor  # (T, D)
    positions: Tensor  # (T,), int64, or float32 where an image has fractional places
    labels: Tensor  # int64 (T,), IGNORE_INDEX on images
    sizes: Tensor  # float32 (T,), 1 on text
    is_image: Tensor  # bool (T,)
    end: int = 0  # position of what follows the prompt


@dataclass(frozen=True)
class PaddedBatch:
    """B prompts padded to T tokens."""

    inputs_embeds: Tensor  # (B, T, D)
    attention_mask: Tensor  # int64 (B, T), 1 on tokens, 0 on padding
    position_ids: Tensor  # (B, T), int64 or float32; 0 on padding
    labels: Tensor  # int64 (B, T), IGNORE_INDEX on padding and images
    sizes: Tensor  # float32 (B, T), 1 on text and padding
    next_positions: Tensor  # int64 (B,), where each prompt goes on


def check_image_count(rows: Sequence[Tensor], images: int) -> None:
    """Raises ValueError unless the prompts hold as many <image> as there are images."""
    wanted = sum(int((row == IMAGE_TOKEN_INDEX).sum()) for row in rows)
    if wanted != images:
        raise ValueError(f"the prompt holds {wanted} <image>, but {images} images were given")


def splice_row(ids: Tensor, embeds: Tensor, images: Sequence[ImageTokens], labels: Tensor | None = None) -> PlacedRow:
    """Replaces each placeholder of one prompt by the tokens of its image.

    Args:
        ids: int64 (L,), IMAGE_TOKEN_INDEX where an image stands.
        embeds: (L, D), embeddings of `ids`; those of placeholders are not read.
        images: in the order of their placeholders, features projected to width D.
        labels: int64 (L,); by default everything is ignored.
    """
    labels = torch.full_like(ids, IGNORE_INDEX) if labels is None else labels
    device = embeds.device
    parts: list[PlacedRow] = []
    start, done = 0, 0  # next position, tokens of the prompt already placed
    ends = (ids == IMAGE_TOKEN_INDEX).nonzero()[:, 0].tolist()
    for image, end in zip([*images, None], [*ends, len(ids)], strict=True):
        text = slice(done, end)
        length = end - done
        places = torch.arange(start, start + length, device=device)
        ones = torch.ones(length, device=device)
        parts.append(PlacedRow(embeds[text], places, labels[text], ones, torch.zeros_like(places, dtype=torch.bool)))
        start, done = start + length, end + 1
        if image is not None:
            parts.append(_place(image, start, embeds))
            start += image.span
    embeds, positions, labels, sizes, is_image = (torch.cat([getattr(p, name) for p in parts]) for name in PER_TOKEN)
    return PlacedRow(embeds, positions, labels, sizes, is_image, end=start)


def truncate(row: PlacedRow, limit: int) -> PlacedRow:
    """Cuts text behind the last image down to `limit` tokens.

    Raises:
        ValueError: an image's tokens would be cut.
    """
    length = len(row.embeds)
    if length <= limit:
        return row
    if row.is_image[limit:].any():
        raise ValueError(
            f"the sequence has {length} tokens, {int(row.is_image.sum())} of them visual, and the limit is {limit}:"
            " it would cut through an image; shorten the text, lower max_tokens or raise the limit"
        )
    embeds, positions, labels, sizes, is_image = (getattr(row, name)[:limit] for name in PER_TOKEN)
    return PlacedRow(embeds, positions, labels, sizes, is_image, end=row.end - (length - limit))


def collate(rows: Sequence[PlacedRow], padding_side: str = "right") -> PaddedBatch:
    """Pads prompts to one length, on the "right" or on the "left"."""

    def pad(name: str, value: float) -> Tensor:
        return pad_sequence([getattr(row, name) for row in rows], True, value, padding_side)

    real = [torch.ones(len(row.embeds), dtype=torch.int64, device=row.embeds.device) for row in rows]
    fractional = any(row.positions.is_floating_point() for row in rows)
    positions = [row.positions.float() if fractional else row.positions for row in rows]
    return PaddedBatch(
        inputs_embeds=pad("embeds", 0.0),
        attention_mask=pad_sequence(real, True, 0, padding_side),
        position_ids=pad_sequence(positions, True, 0, padding_side),
        labels=pad("labels", IGNORE_INDEX),
        sizes=pad("sizes", 1.0),
        next_positions=torch.tensor([row.end for row in rows], device=rows[0].embeds.device),
    )


def causal_mask_with_bias(attention_mask: Tensor, key_bias: Tensor, queries: int, dtype: torch.dtype) -> Tensor:
    """The additive attention mask of a causal model with a bias on keys.

    Args:
        attention_mask: (B, K), nonzero on real keys; K counts cached keys and the new ones.
        key_bias: float (B, K0), K0 <= K; later keys have none.
        queries: Q, number of new tokens, the last Q of the K keys.
        dtype: of the model.

    Returns:
        (B, 1, Q, K): the bias where a query may look, the lowest number elsewhere.
    """
    if attention_mask.ndim != 2:
        raise ValueError(
            "llm_size_bias and llm_weight need a 2-D attention mask; they do not go with static or compiled caches"
        )
    batch, keys = attention_mask.shape
    bias = torch.zeros(batch, keys, device=attention_mask.device)
    bias[:, : key_bias.shape[1]] = key_bias
    key = torch.arange(keys, device=attention_mask.device)
    causal = key[None, :] <= key[keys - queries :, None]  # (Q, K)
    allowed = causal[None] & attention_mask[:, None, :].bool()
    mask = bias[:, None, :].expand(-1, queries, -1).masked_fill(~allowed, torch.finfo(dtype).min)
    return mask.to(dtype)[:, None]


def _place(image: ImageTokens, start: int, like: Tensor) -> PlacedRow:
    """An image's tokens from position `start` on."""
    count, device = len(image.features), like.device
    places = torch.arange(count, device=device) if image.positions is None else image.positions.to(device)
    sizes = torch.ones(count, device=device) if image.sizes is None else image.sizes.to(device)
    ignored = torch.full((count,), IGNORE_INDEX, device=device)
    here = torch.ones(count, dtype=torch.bool, device=device)
    return PlacedRow(image.features.to(like), places + start, ignored, sizes, here)
