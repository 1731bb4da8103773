"""Splices ragged image tokens into text embeddings and pads the prompts to one batch. Pure functions.

Positions and weights come from `qlip.language_positions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model.vision.image_tokens import ImageTokens
from qlip.language_positions import ImageSpan, Placed, key_bias, place_tokens


@dataclass(frozen=True)
class SplicedRow:
    """One prompt with its images in place; T tokens."""

    embeds: Tensor  # (T, D)
    labels: Tensor  # int64 (T,), IGNORE_INDEX on images
    is_image: Tensor  # bool (T,)
    spans: list[ImageSpan]  # of its images


@dataclass(frozen=True)
class PaddedBatch:
    """Prompts padded to T tokens: B rows of one prompt each, or of several one behind the other."""

    inputs_embeds: Tensor  # (B, T, D)
    attention_mask: Tensor  # int64 (B, T), 1 on tokens, 0 on padding
    labels: Tensor  # int64 (B, T), IGNORE_INDEX on padding and images
    placed: Placed  # positions and weights of (B, T); each prompt's begin at 0
    prompts: Tensor | None = None  # int64 (B, T), number of each token's prompt, -1 on padding; None: a prompt per row


def holds_images(input_ids: Tensor, images: object) -> bool:
    """Whether images were given, or a prompt asks for one."""
    return images is not None or bool((input_ids == IMAGE_TOKEN_INDEX).any())


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


def collate(rows: Sequence[SplicedRow], padding_side: str = "right", packs: Sequence[int] | None = None) -> PaddedBatch:
    """Pads prompts to one length, on the "right" or on the "left", and computes their positions.

    Args:
        rows: the prompts.
        padding_side: "right" or "left".
        packs: a number for each prompt: those of equal numbers share a row, in their order; rows are in the order of
            the numbers. By default every prompt has a row.
    """
    groups = [[i] for i in range(len(rows))] if packs is None else group_by_number(packs)
    later = {i for group in groups for i in group[1:]}
    placed = [place_tokens(row.is_image, row.spans) for row in rows]
    fractional = any(row.positions.is_floating_point() for row in placed)
    dtype = torch.float32 if fractional else torch.int64

    def lay_out(sequences: Sequence[Tensor], padding: float) -> Tensor:
        joined = [torch.cat([sequences[i] for i in group]) for group in groups]
        return pad_sequence(joined, True, padding, padding_side)

    return PaddedBatch(
        inputs_embeds=lay_out([row.embeds for row in rows], 0.0),
        attention_mask=lay_out([torch.ones_like(row.labels) for row in rows], 0),
        labels=lay_out(
            [_ignore_first(row.labels) if i in later else row.labels for i, row in enumerate(rows)], IGNORE_INDEX
        ),
        placed=Placed(
            positions=lay_out([row.positions.to(dtype) for row in placed], 0),
            sizes=lay_out([row.sizes for row in placed], 1.0),
            end=torch.stack([placed[group[-1]].end for group in groups]),
        ),
        prompts=lay_out([torch.full_like(row.labels, i) for i, row in enumerate(rows)], -1) if later else None,
    )


def group_by_number(numbers: Sequence[int]) -> list[list[int]]:
    """Lists the indices of each number, numbers and indices in ascending order."""
    groups: dict[int, list[int]] = {number: [] for number in sorted(set(numbers))}
    for index, number in enumerate(numbers):
        groups[number].append(index)
    return list(groups.values())


def _ignore_first(labels: Tensor) -> Tensor:
    """Ignores a prompt's first token, which would be predicted from the prompt before it in the row."""
    labels = labels.clone()
    labels[:1] = IGNORE_INDEX
    return labels


def bias_keys(batch: PaddedBatch, config: Any) -> Tensor | None:
    """Computes float32 (B, T): log(size^2) on the keys of image tokens; None where all sizes are 1.

    Args:
        batch: the prompts.
        config: the language model's.

    Raises:
        ValueError: there is a bias, and the language model's attention can't apply it.
    """
    return key_bias(batch.placed.sizes, config._attn_implementation)
