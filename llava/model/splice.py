"""Splices ragged image tokens into text embeddings and pads the prompts to one batch. Pure functions.

Positions and weights come from `qlip.language_positions`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model.vision.image_tokens import ImageTokens
from llava.model.vision.input_checks import check_ids
from qlip.decoder_masks import counts_tokens
from qlip.language_positions import ImageSpan, Placed, key_bias, place_tokens

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StackedImage:
    """Where an image's tokens lie among the embeddings of a batch."""

    start: int  # row of the first
    span: ImageSpan  # of all


@dataclass(frozen=True)
class SplicedRow:
    """One prompt with its images in place; T tokens.

    On the CPU: reading a GPU's values would synchronize for every row.
    """

    sources: Tensor  # int64 (T,), row of each token among the batch's embeddings, see `stack_embeds`
    labels: Tensor  # int64 (T,), IGNORE_INDEX on images
    is_image: Tensor  # bool (T,)
    spans: list[ImageSpan]  # of its images


@dataclass(frozen=True)
class PaddedBatch:
    """Prompts padded to T tokens: B rows of one prompt each, or of several one after the other."""

    inputs_embeds: Tensor  # (B, T, D)
    attention_mask: Tensor  # int64 (B, T), 1 on tokens, 0 on padding
    labels: Tensor  # int64 (B, T), IGNORE_INDEX on padding and images
    placed: Placed  # positions and weights of (B, T); each prompt's begin at 0
    weighted: bool  # whether tokens may weigh other than one
    prompts: Tensor | None = None  # int64 (B, T), number of each token's prompt, -1 on padding; None: a prompt per row


def holds_images(input_ids: Tensor, images: object) -> bool:
    """Whether images were given, or a prompt asks for one; raises as `check_ids` does."""
    check_ids(input_ids)
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


def check_spans(config: Any, images: Iterable[ImageTokens]) -> None:
    """Checks that a language model can place and weigh the tokens of images; only MPT can't.

    Raises:
        ValueError: it would count tokens that have other positions, or lose their weights.
    """
    if counts_tokens(config):
        for image in images:
            if image.span.positions is not None or image.span.sizes is not None:
                raise ValueError(
                    "an image's tokens have positions or weights, which MPT's attention (ALiBi) can't apply: encode it"
                    " with llm_positions='sequential', llm_size_bias=0.0 and llm_weight='each', and keep all its tokens"
                )


def stack_embeds(text: Tensor, images: Sequence[ImageTokens]) -> tuple[Tensor, list[StackedImage]]:
    """Stacks what a batch's tokens are taken from: text first, then its images, and at the end zeros for padding.

    Args:
        text: (L, D), the embeddings of all prompts.
        images: of N tokens together, projected to width D.

    Returns:
        (L + N + 1, D) in the dtype and on the device of `text`, and where each image's tokens lie.

    Raises:
        ValueError: an image has another number of features than its span counts.
    """
    counts = [len(image.features) for image in images]
    if counts != (spans := [image.span.count for image in images]):
        raise ValueError(f"the images have {counts} features, and their spans count {spans} tokens")
    starts = list(accumulate(counts, initial=len(text)))[:-1]
    places = [StackedImage(start, image.span) for start, image in zip(starts, images, strict=True)]
    return torch.cat([text, *(image.features.to(text) for image in images), text.new_zeros(1, text.shape[1])]), places


def splice_row(ids: Tensor, start: int, images: Sequence[StackedImage], labels: Tensor | None = None) -> SplicedRow:
    """Replaces each placeholder of one prompt by the tokens of its image.

    Args:
        ids: int64 (L,) on the CPU, IMAGE_TOKEN_INDEX where an image goes.
        start: row of the prompt's first element among the batch's embeddings; placeholders have a row, too.
        images: in the order of their placeholders.
        labels: int64 (L,) on the CPU; by default everything is ignored.

    Raises:
        ValueError: another number of images than placeholders.
    """
    labels = torch.full_like(ids, IGNORE_INDEX) if labels is None else labels
    holders = ids == IMAGE_TOKEN_INDEX
    if (asked := int(holders.sum())) != len(images):
        raise ValueError(f"the prompt holds {asked} <image>, but {len(images)} images were given")
    counts = torch.ones(len(ids), dtype=torch.int64)
    counts[holders] = torch.tensor([image.span.count for image in images], dtype=torch.int64)
    is_image = holders.repeat_interleave(counts)
    sources = torch.arange(start, start + len(ids)).repeat_interleave(counts)
    if images:
        sources[is_image] = torch.cat([torch.arange(image.start, image.start + image.span.count) for image in images])
    labels = labels.repeat_interleave(counts).masked_fill(is_image, IGNORE_INDEX)
    return SplicedRow(sources, labels, is_image, [image.span for image in images])


def truncate(row: SplicedRow, limit: int) -> SplicedRow:
    """Cuts text after the last image to a row of `limit` tokens.

    Raises:
        ValueError: an image's tokens would be cut.
    """
    length = len(row.sources)
    if length <= limit:
        return row
    if row.is_image[limit:].any():
        raise ValueError(
            f"the sequence has {length} tokens, {int(row.is_image.sum())} of them visual, and the limit is {limit}:"
            " it would cut through an image; shorten the text, lower max_tokens or raise the limit"
        )
    return SplicedRow(row.sources[:limit], row.labels[:limit], row.is_image[:limit], row.spans)


def collate(
    rows: Sequence[SplicedRow], embeds: Tensor, padding_side: str = "right", packs: Sequence[int] | None = None
) -> PaddedBatch:
    """Pads prompts to one length, on the "right" or on the "left", and computes their positions.

    Args:
        rows: the prompts.
        embeds: (S, D), what they are taken from, see `stack_embeds`; the batch is on its device.
        padding_side: "right" or "left".
        packs: a number for each prompt: those of equal numbers share a row, in their order; rows are in the order of
            the numbers. By default every prompt has a row.
    """
    groups = [[i] for i in range(len(rows))] if packs is None else group_by_number(packs)
    later = {i for group in groups for i in group[1:]}
    placed = [place_tokens(row.is_image, row.spans) for row in rows]
    fractional = any(row.positions.is_floating_point() for row in placed)
    dtype = torch.float32 if fractional else torch.int64

    def send(tensor: Tensor) -> Tensor:
        return tensor.to(embeds.device, non_blocking=embeds.is_cuda)

    def lay_out(sequences: Sequence[Tensor], padding: float) -> Tensor:
        joined = [torch.cat([sequences[i] for i in group]) for group in groups]
        return send(pad_sequence(joined, True, padding, padding_side))

    sources = lay_out([row.sources for row in rows], len(embeds) - 1)
    return PaddedBatch(
        inputs_embeds=embeds.index_select(0, sources.flatten()).unflatten(0, sources.shape),
        attention_mask=lay_out([torch.ones_like(row.labels) for row in rows], 0),
        labels=lay_out(
            [_ignore_first(row.labels) if i in later else row.labels for i, row in enumerate(rows)], IGNORE_INDEX
        ),
        placed=Placed(
            positions=lay_out([row.positions.to(dtype) for row in placed], 0),
            sizes=lay_out([row.sizes for row in placed], 1.0),
            end=send(torch.stack([placed[group[-1]].end for group in groups])),
        ),
        weighted=any(span.sizes is not None for row in rows for span in row.spans),
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


def warn_beyond_context(batch: PaddedBatch, config: Any) -> None:
    """Warns of prompts that leave no place for an answer, which would be about nothing; LLaVA has no such check."""
    if (longest := int(batch.placed.end.max())) >= config.context_length:
        logger.warning(
            "a prompt takes %d positions with its images, and the model's context has %d: answers will be wrong;"
            " ask about fewer images, or with fewer tokens each",
            longest,
            config.context_length,
        )


def bias_keys(batch: PaddedBatch, config: Any) -> Tensor | None:
    """Computes float32 (B, T): log(size^2) on the keys of image tokens; None where all sizes are 1.

    Args:
        batch: the prompts.
        config: the language model's.

    Raises:
        ValueError: there is a bias, and the language model's attention can't apply it.
    """
    # The sizes are read only if needed: reading values from a GPU synchronizes with it.
    return key_bias(batch.placed.sizes, config._attn_implementation) if batch.weighted else None
