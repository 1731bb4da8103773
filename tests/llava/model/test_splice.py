"""splice.py: the order and position of every token of a prompt with images, and what is refused."""

from __future__ import annotations

import pytest
import torch

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model.splice import SplicedRow, collate, share_images, splice_row, truncate
from llava.model.vision.image_tokens import ImageTokens
from qlip.language_positions import ImageSpan

WIDTH = 4
IMAGE = IMAGE_TOKEN_INDEX


def text(ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids, and embeddings that carry the id."""
    return torch.tensor(ids), torch.tensor(ids, dtype=torch.float32)[:, None].expand(-1, WIDTH)


def image(count: int, value: float, positions: list[float] | None = None, length: int | None = None) -> ImageTokens:
    own = None if positions is None else torch.tensor(positions)
    span = ImageSpan(count, own, count if length is None else length, None)
    return ImageTokens(torch.full((count, WIDTH), value), span)


def positions(row: SplicedRow) -> torch.Tensor:
    return collate([row]).placed.positions[0]


def test_text_and_images_keep_their_order():
    ids, embeds = text([1, IMAGE, 7, 8, IMAGE])
    row = splice_row(ids, embeds, [image(2, 100.0), image(3, 200.0)])
    assert row.embeds[:, 0].tolist() == [1, 100, 100, 7, 8, 200, 200, 200]
    assert positions(row).tolist() == list(range(8))
    assert not positions(row).is_floating_point()
    assert row.is_image.tolist() == [False, True, True, False, False, True, True, True]


def test_text_continues_a_spans_length_after_the_images_start():
    ids, embeds = text([1, 2, IMAGE, 7, IMAGE, 8])
    first = image(3, 100.0, [0.0, 4.5, 15.0], length=16)
    row = splice_row(ids, embeds, [first, image(1, 200.0, [7.5], length=16)])
    assert positions(row).tolist() == [0, 1, 2, 6.5, 17, 18, 19 + 7.5, 35]


def test_labels_are_ignored_on_images():
    ids, embeds = text([1, IMAGE, 7])
    row = splice_row(ids, embeds, [image(2, 1.0)], labels=torch.tensor([IGNORE_INDEX, 55, 7]))
    assert row.labels.tolist() == [IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX, 7]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_on_the_given_side_and_nothing_else_moves(side):
    rows = [splice_row(*text([1, IMAGE, 7]), [image(2, 9.0, [0.5, 3.0], 4)]), splice_row(*text([5, 6]), [])]
    batch = collate(rows, side)
    short = slice(2, None) if side == "left" else slice(0, 2)
    assert batch.inputs_embeds.shape == (2, 4, WIDTH)
    assert batch.attention_mask.sum(1).tolist() == [4, 2]
    assert batch.attention_mask[1, short].tolist() == [1, 1]
    assert batch.placed.positions[0].tolist() == [0, 1.5, 4, 5]
    assert batch.placed.positions[1, short].tolist() == [0, 1]
    assert batch.placed.end.tolist() == [6, 2]
    assert (batch.labels == IGNORE_INDEX).all()
    assert batch.inputs_embeds[1, short, 0].tolist() == [5, 6]


def test_truncation_cuts_text_after_the_last_image():
    row = splice_row(*text([1, IMAGE, 7, 8, 9]), [image(3, 1.0)])
    assert truncate(row, 5).embeds[:, 0].tolist() == [1, 1, 1, 1, 7]
    assert collate([truncate(row, 5)]).placed.end.tolist() == [5]
    assert truncate(row, 100) is row


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_truncation_never_cuts_an_image(limit):
    row = splice_row(*text([1, IMAGE, 7]), [image(3, 1.0)])
    with pytest.raises(ValueError, match=f"5 tokens, 3 of them visual, and the limit is {limit}"):
        truncate(row, limit)


SHARES = {
    "one each": ([[1, IMAGE], [IMAGE, IMAGE]], 3, [[0], [1, 2]]),
    "none for text": ([[1], [IMAGE], [2]], 1, [[], [0], []]),
    "one for text, too, as in LLaVA's training batches": ([[1], [IMAGE], [2]], 3, [[0], [1], [2]]),
    "one for text, and a surplus": ([[1], [IMAGE, IMAGE]], 5, [[0], [1, 2]]),
    "a surplus behind the last prompt": ([[IMAGE], [IMAGE]], 4, [[0], [1]]),
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
