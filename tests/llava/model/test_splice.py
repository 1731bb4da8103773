"""splice.py: the order and position of every token of a prompt with images, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model.splice import SplicedRow, collate, share_images, splice_row, stack_embeds, truncate
from llava.model.vision.image_tokens import ImageTokens
from qlip.language_positions import ImageSpan

WIDTH = 4
IMAGE = IMAGE_TOKEN_INDEX


def image(count: int, value: float, positions: list[float] | None = None, length: int | None = None) -> ImageTokens:
    own = None if positions is None else torch.tensor(positions)
    span = ImageSpan(count, own, count if length is None else length, None)
    return ImageTokens(torch.full((count, WIDTH), value), span)


def splice(*prompts: tuple[list[int], list[ImageTokens]]) -> tuple[list[SplicedRow], torch.Tensor]:
    """Rows and embeddings of prompts with their images; the embeddings of text carry its ids."""
    ids = torch.tensor([token for prompt, _ in prompts for token in prompt])
    embeds, places = stack_embeds(
        ids[:, None].expand(-1, WIDTH).float(), [own for _, images in prompts for own in images]
    )
    rows, start = [], 0
    for prompt, images in prompts:
        rows.append(splice_row(torch.tensor(prompt), start, [places.pop(0) for _ in images]))
        start += len(prompt)
    return rows, embeds


def positions(*prompt) -> torch.Tensor:
    return collate(*splice(prompt)).placed.positions[0]


def test_text_and_images_keep_their_order():
    prompt = ([1, IMAGE, 7, 8, IMAGE], [image(2, 100.0), image(3, 200.0)])
    rows, embeds = splice(prompt)
    assert collate(rows, embeds).inputs_embeds[0, :, 0].tolist() == [1, 100, 100, 7, 8, 200, 200, 200]
    assert positions(*prompt).tolist() == list(range(8))
    assert not positions(*prompt).is_floating_point()
    assert rows[0].is_image.tolist() == [False, True, True, False, False, True, True, True]


def test_text_continues_a_spans_length_after_the_images_start():
    first = image(3, 100.0, [0.0, 4.5, 15.0], length=16)
    found = positions([1, 2, IMAGE, 7, IMAGE, 8], [first, image(1, 200.0, [7.5], length=16)])
    assert found.tolist() == [0, 1, 2, 6.5, 17, 18, 19 + 7.5, 35]


def test_labels_are_ignored_on_images():
    places = stack_embeds(torch.zeros(3, WIDTH), [image(2, 1.0)])[1]
    row = splice_row(torch.tensor([1, IMAGE, 7]), 0, places, labels=torch.tensor([IGNORE_INDEX, 55, 7]))
    assert row.labels.tolist() == [IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX, 7]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_on_the_given_side_and_nothing_else_moves(side):
    batch = collate(*splice(([1, IMAGE, 7], [image(2, 9.0, [0.5, 3.0], 4)]), ([5, 6], [])), side)
    short = slice(2, None) if side == "left" else slice(0, 2)
    assert batch.inputs_embeds[0, :, 0].tolist() == [1, 9, 9, 7]
    assert batch.inputs_embeds.shape == (2, 4, WIDTH)
    assert batch.attention_mask.sum(1).tolist() == [4, 2]
    assert batch.attention_mask[1, short].tolist() == [1, 1]
    assert batch.placed.positions[0].tolist() == [0, 1.5, 4, 5]
    assert batch.placed.positions[1, short].tolist() == [0, 1]
    assert batch.placed.end.tolist() == [6, 2]
    assert (batch.labels == IGNORE_INDEX).all()
    assert batch.inputs_embeds[1, short, 0].tolist() == [5, 6]
    assert batch.inputs_embeds[1].sum() == 11 * WIDTH  # padding is zero


def test_each_token_has_its_own_gradient_and_padding_none():
    ids = torch.tensor([[1.0], [0.0], [7.0], [5.0]]).expand(-1, WIDTH).clone().requires_grad_()
    features = torch.ones(2, WIDTH, requires_grad=True)
    embeds, places = stack_embeds(ids, [ImageTokens(features, ImageSpan.sequential(2))])
    rows = [splice_row(torch.tensor([1, IMAGE, 7]), 0, places), splice_row(torch.tensor([5]), 3, [])]
    weights = torch.arange(1.0, 9.0).view(2, 4, 1)
    (collate(rows, embeds).inputs_embeds * weights).sum().backward()
    assert ids.grad[:, 0].tolist() == [1, 0, 4, 5]
    assert features.grad[:, 0].tolist() == [2, 3]


def test_weights_are_noticed():
    plain, weighted = image(2, 1.0), image(2, 1.0)
    weighted = replace(weighted, span=replace(weighted.span, sizes=torch.tensor([2.0, 1.0])))
    assert not collate(*splice(([IMAGE, 1], [plain]), ([1], []))).weighted
    assert collate(*splice(([IMAGE, 1], [plain]), ([IMAGE], [weighted]))).weighted


def test_features_that_their_span_does_not_count_are_an_error():
    wrong = ImageTokens(torch.zeros(3, WIDTH), ImageSpan.sequential(2))
    with pytest.raises(ValueError, match=r"have \[2, 3\] features, and their spans count \[2, 2\]"):
        stack_embeds(torch.zeros(1, WIDTH), [image(2, 1.0), wrong])


@pytest.mark.parametrize("given", [0, 2])
def test_a_prompt_takes_as_many_images_as_it_has_places_for(given):
    places = stack_embeds(torch.zeros(2, WIDTH), [image(2, 1.0)] * given)[1]
    with pytest.raises(ValueError, match=f"holds 1 <image>, but {given} images were given"):
        splice_row(torch.tensor([1, IMAGE]), 0, places)


def test_truncation_cuts_text_after_the_last_image():
    (row,), embeds = splice(([1, IMAGE, 7, 8, 9], [image(3, 1.0)]))
    cut = collate([truncate(row, 5)], embeds)
    assert cut.inputs_embeds[0, :, 0].tolist() == [1, 1, 1, 1, 7]
    assert cut.placed.end.tolist() == [5]
    assert truncate(row, 100) is row


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_truncation_never_cuts_an_image(limit):
    (row,), _ = splice(([1, IMAGE, 7], [image(3, 1.0)]))
    with pytest.raises(ValueError, match=f"5 tokens, 3 of them visual, and the limit is {limit}"):
        truncate(row, limit)


SHARES = {
    "one each": ([[1, IMAGE], [IMAGE, IMAGE]], 3, [[0], [1, 2]]),
    "none for text": ([[1], [IMAGE], [2]], 1, [[], [0], []]),
    "one for text, too, as in LLaVA's training batches": ([[1], [IMAGE], [2]], 3, [[0], [1], [2]]),
    "one for text, and a surplus": ([[1], [IMAGE, IMAGE]], 5, [[0], [1, 2]]),
    "a surplus after the last prompt": ([[IMAGE], [IMAGE]], 4, [[0], [1]]),
    "a picture beside text alone": ([[1, 2]], 1, [[0]]),
    "nothing": ([[1], [2]], 0, [[], []]),
}


@pytest.mark.parametrize(("prompts", "images", "shares"), SHARES.values(), ids=SHARES.keys())
def test_each_prompt_takes_the_images_that_llava_counts_for_it(prompts, images, shares):
    assert [list(share) for share in share_images([torch.tensor(ids) for ids in prompts], images)] == shares


@pytest.mark.parametrize(
    ("prompts", "images", "reason"),
    [
        ([[1, IMAGE]], 0, "holds 1 <image>, but 0 images were given$"),
        ([[IMAGE, IMAGE], [IMAGE]], 2, "holds 3 <image>, but 2 images were given$"),
        ([[1], [IMAGE], [2]], 2, "holds 1 <image>, but 2 images were given; allowed are 1, or 3 with one for each"),
        ([[1], [IMAGE]], 0, "holds 1 <image>, but 0 images were given; allowed are 1, or 2"),
    ],
)
def test_too_few_images_are_an_error(prompts, images, reason):
    with pytest.raises(ValueError, match=reason):
        share_images([torch.tensor(ids) for ids in prompts], images)


def test_tiles_of_one_image_follow_each_other():
    joined = ImageTokens.join([image(2, 1.0, [0.5, 1.0], 4), image(2, 2.0, [0.0, 3.0], 4)])
    assert (joined.span.count, joined.span.length) == (4, 8)
    assert joined.span.positions.tolist() == [0.5, 1.0, 4.0, 7.0]
    assert ImageTokens.join([image(2, 1.0), image(3, 2.0)]).span.positions is None
