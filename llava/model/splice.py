"""Places ragged image tokens among text embeddings and makes one padded batch of it. Pure functions.

Positions and weights come from `qlip.language_positions`. Knows nothing of towers, tokenizers or generation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model.multimodal_encoder.base import ImageTokens
from qlip.language_positions import ImageSpan, place_tokens

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


def share_images(rows: Sequence[Tensor], images: int) -> list[range]:
    """Which images each prompt takes, in order: one per <image>, as LLaVA counts them.

    With an image more for each prompt that holds no <image>, such a prompt takes one that it does not show: LLaVA's
    training batches have a black picture for it. What is left behind the last prompt is ignored.

    Args:
        rows: int64 (L,), the prompts of a batch.
        images: how many were given.

    Raises:
        ValueError: there are too few, or some of those extra ones are missing.
    """
    takes = [int((row == IMAGE_TOKEN_INDEX).sum()) for row in rows]
    wanted, bare = sum(takes), takes.count(0)
    if images < wanted or wanted < images < wanted + bare:
        extra = f"; allowed are {wanted}, or {wanted + bare} with one for each prompt that holds none" if bare else ""
        raise ValueError(f"the prompt holds {wanted} <image>, but {images} images were given{extra}")
    if images > wanted:
        takes = [max(1, count) for count in takes]
    ends = list(accumulate(takes))
    return [range(end - count, end) for count, end in zip(takes, ends, strict=True)]


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
    parts: list[tuple[Tensor, Tensor, Tensor]] = []  # embeds, labels, is_image of each stretch
    done = 0  # tokens of the prompt already taken
    ends = (ids == IMAGE_TOKEN_INDEX).nonzero()[:, 0].tolist()
    for image, end in zip([*images, None], [*ends, len(ids)], strict=True):
        text = slice(done, end)
        parts.append((embeds[text], labels[text], torch.zeros(end - done, dtype=torch.bool, device=device)))
        done = end + 1
        if image is not None:
            count = len(image.features)
            ignored = torch.full((count,), IGNORE_INDEX, device=device)
            here = torch.ones(count, dtype=torch.bool, device=device)
            parts.append((image.features.to(embeds), ignored, here))
    embeds, labels, is_image = (torch.cat(stretches) for stretches in zip(*parts, strict=True))
    spans = [ImageSpan(len(image.features), image.positions, image.span, image.sizes) for image in images]
    placed = place_tokens(is_image, spans)
    return PlacedRow(embeds, placed.positions, labels, placed.sizes, is_image, end=int(placed.end))


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
