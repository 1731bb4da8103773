"""Splices ragged image tokens into text embeddings and pads the prompts to one batch. Pure functions.

Positions and weights come from `qlip.language_positions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model.image_tokens import ImageTokens
from qlip.language_positions import ImageSpan, Placed, place_batch


@dataclass(frozen=True)
class SplicedRow:
    """One prompt with its images in place; T tokens."""

    embeds: Tensor  # (T, D)
    labels: Tensor  # int64 (T,), IGNORE_INDEX on images
    is_image: Tensor  # bool (T,)
    spans: list[ImageSpan]  # of its images


@dataclass(frozen=True)
class PaddedBatch:
    """B prompts padded to T tokens."""

    inputs_embeds: Tensor  # (B, T, D)
    attention_mask: Tensor  # int64 (B, T), 1 on tokens, 0 on padding
    labels: Tensor  # int64 (B, T), IGNORE_INDEX on padding and images
    placed: Placed  # positions and weights of (B, T)


def share_images(rows: Sequence[Tensor], images: int) -> list[range]:
    """Assigns images to prompts in order, one per <image>, as LLaVA counts them.

    If there is one more for each prompt without <image>, such a prompt takes one that it does not show: LLaVA's
    training batches have a black image for it. Images left over after the last prompt are ignored.

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


def splice_row(ids: Tensor, embeds: Tensor, images: Sequence[ImageTokens], labels: Tensor | None = None) -> SplicedRow:
    """Replaces each placeholder of one prompt by the tokens of its image.

    Args:
        ids: int64 (L,), IMAGE_TOKEN_INDEX where an image goes.
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
    return SplicedRow(embeds, labels, is_image, [image.span for image in images])


def truncate(row: SplicedRow, limit: int) -> SplicedRow:
    """Cuts text after the last image to a row of `limit` tokens.

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
    return SplicedRow(row.embeds[:limit], row.labels[:limit], row.is_image[:limit], row.spans)


def collate(rows: Sequence[SplicedRow], padding_side: str = "right") -> PaddedBatch:
    """Pads prompts to one length, on the "right" or on the "left", and computes their positions."""

    def pad(sequences: list[Tensor], value: float) -> Tensor:
        return pad_sequence(sequences, True, value, padding_side)

    real = pad([torch.ones_like(row.is_image) for row in rows], False)
    is_image = pad([row.is_image for row in rows], False)
    return PaddedBatch(
        inputs_embeds=pad([row.embeds for row in rows], 0.0),
        attention_mask=real.long(),
        labels=pad([row.labels for row in rows], IGNORE_INDEX),
        placed=place_batch(is_image, real, [span for row in rows for span in row.spans]),
    )
