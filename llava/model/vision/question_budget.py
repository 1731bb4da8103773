"""The first pass of the question-aware budget: how much a prompt's question attends to each token of its images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model.multimodal_encoder.qlip_encoder import QLIPVisionTower
from llava.model.splice import bias_keys, share_images
from llava.model.vision.encoding import encode_prepared
from llava.model.vision.image_tokens import ImageTokens
from llava.model.vision.prepared_image import PreparedImage, prepare_cut
from qlip.attention import attention_on_keys, check_followed, middle_layer
from qlip.decoder_masks import window_of


def awaits_question(images: Sequence[PreparedImage]) -> bool:
    """Whether a question decides what is split in one of the images."""
    return any(image.question is not None for image in images)


@torch.inference_mode()
def refine_images(
    model: Any,
    prompts: Sequence[Tensor],
    questions: Sequence[int],
    images: Sequence[Sequence[PreparedImage]],
    seen: Sequence[Sequence[ImageTokens]] | None = None,
) -> list[list[PreparedImage]]:
    """Splits what each prompt's question attends to in its images, those that await a question.

    Every image of a prompt is asked about, those of earlier turns too. An answer does not depend on the other prompts.

    Args:
        model: a LLaVA model with a quadtree tower.
        prompts: int64 (L,) each, see `attention_on_images`.
        questions: where each prompt's newest question begins.
        images: of each prompt, as they were prepared.
        seen: what `encode_prepared` makes of them; by default computed here.
    """
    refined = [list(own) for own in images]
    asking = [i for i, own in enumerate(images) if awaits_question(own)]
    if not asking:
        return refined
    if seen is None:
        parts = iter(encode_prepared(model, [image for i in asking for image in images[i]]))
        shown = [[next(parts) for _ in images[i]] for i in asking]
    else:
        shown = [list(seen[i]) for i in asking]
    weights = attention_on_images(model, [prompts[i] for i in asking], [questions[i] for i in asking], shown)
    for i, own in zip(asking, weights, strict=True):
        refined[i] = [image.refine(part) for image, part in zip(images[i], own, strict=True)]
    return refined


@torch.no_grad()
def refine_pixels(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    images: Any,
    *,
    labels: Tensor | None = None,
    needs_question: bool = True,
) -> Any:
    """Encodes images as their prompts' questions ask, if the tower's settings say so.

    Args:
        model: a LLaVA model.
        input_ids: int64 (B, L), IMAGE_TOKEN_INDEX where an image goes.
        attention_mask: (B, L), nonzero on real tokens; by default all are.
        images: pixels of each image, one per placeholder; tokens, and other images, are returned as they are. Those
            that no prompt shows, see `share_images`, are left out.
        labels: int64 (B, L); text with labels is an answer, and no part of the question.
        needs_question: whether a prompt without text after its last image is an error; else the scores decide there.

    Raises:
        ValueError: a prompt has no question.
    """
    tower = model.get_vision_tower()
    if images is None or len(images) == 0 or not isinstance(images[0], Tensor) or images[0].ndim != 3:
        return images
    if not isinstance(tower, QLIPVisionTower) or tower.settings.budget != "question":
        return images
    asked = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    if labels is not None:
        asked = asked & ((labels == IGNORE_INDEX) | (input_ids == IMAGE_TOKEN_INDEX))
    rows = [ids[keep].cpu() for ids, keep in zip(input_ids, asked, strict=True)]
    shares = [
        share if bool((row == IMAGE_TOKEN_INDEX).any()) else range(0)
        for row, share in zip(rows, share_images(rows, len(images)), strict=True)
    ]
    cutter, by_score = tower.image_processor.cutter, replace(tower.settings, budget="score")
    shown = []
    for row, share in zip(rows, shares, strict=True):
        is_asked = needs_question or not len(row) or int(row[-1]) != IMAGE_TOKEN_INDEX
        settings = tower.settings if is_asked else by_score
        pixels = [images[i].to(tower.device) for i in share]
        shown.append([prepare_cut(partial(cutter.cut, each), cutter, settings) for each in pixels])
    refined = refine_images(model, rows, [0] * len(rows), shown)
    return encode_prepared(model, [image for own in refined for image in own])


@torch.inference_mode()
def attention_on_images(
    model: Any,
    prompts: Sequence[Tensor],
    questions: Sequence[int],
    images: Sequence[Sequence[ImageTokens]],
    layer: int | None = None,
) -> list[list[Tensor]]:
    """Computes how much each prompt's question attends to every token of its images, in one batch.

    Args:
        model: a LLaVA model.
        prompts: int64 (L,) each, IMAGE_TOKEN_INDEX where an image goes.
        questions: where each prompt's newest question begins, as an index into the prompt; the tokens from there on
            attend.
        images: of each prompt, at least one, projected.
        layer: of the language model, counted from 0; None for the middle one.

    Returns:
        float32 (M,) for each image of each prompt.

    Raises:
        ValueError: no token that attends follows a prompt's images.
    """
    rows = [_mark_row(*row) for row in zip(prompts, questions, images, strict=True)]
    for number, (asks, spans) in enumerate(rows):
        check_followed(asks, spans[-1].stop, number)
    ids = pad_sequence(list(prompts), True, 0, "left").to(model.device)
    mask = pad_sequence([torch.ones_like(prompt) for prompt in prompts], True, 0, "left").to(model.device)
    batch = model.splice_images(ids, mask, None, [image for own in images for image in own], "left")
    trunk, bias = model.get_model(), bias_keys(batch, model.config)
    number = middle_layer(trunk) if layer is None else layer

    def run() -> None:
        model(
            inputs_embeds=batch.inputs_embeds,
            attention_mask=batch.attention_mask,
            position_ids=batch.placed.positions,
            key_bias=bias,
            use_cache=False,
            logits_to_keep=1,
        )

    weights = attention_on_keys(
        trunk,
        number,
        run,
        pad_sequence([asks for asks, _ in rows], True, False, "left"),
        batch.attention_mask.bool(),
        bias,
        window_of(model.config, number),
    )
    lengths = [len(asks) for asks, _ in rows]
    own = [row[len(row) - length :] for row, length in zip(weights, lengths, strict=True)]
    return [[row[span] for span in spans] for row, (_, spans) in zip(own, rows, strict=True)]


def _mark_row(prompt: Tensor, question: int, images: Sequence[ImageTokens]) -> tuple[Tensor, list[slice]]:
    """Marks the tokens that attend, bool (T,), and finds each image's tokens, in a prompt with its images in place."""
    places = (prompt == IMAGE_TOKEN_INDEX).nonzero()[:, 0].tolist()
    asks, spans, length = [], [], 0
    borders = [-1, *places, len(prompt)]
    for number, (before, after) in enumerate(pairwise(borders)):
        text = torch.arange(before + 1, after) >= question
        asks.append(text)
        length += len(text)
        if number < len(places):
            count = len(images[number].features)
            asks.append(torch.zeros(count, dtype=torch.bool))
            spans.append(slice(length, length + count))
            length += count
    return torch.cat(asks), spans
