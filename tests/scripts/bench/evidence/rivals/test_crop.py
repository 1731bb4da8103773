"""The two-pass crop: attention against transformers' own, and the window against a search written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from llava.eval.run.generate import prompt_ids
from llava.model.vision.image_tokens import ImageTokens
from qlip.language_positions import ImageSpan
from scripts.bench.evidence.answering.subject import Subject
from scripts.bench.evidence.answering.variants import CLIP, Variant
from scripts.bench.evidence.rivals.crop import Box, attend_to_image, choose_box, join_views, window_sides

PICTURE = Image.radial_gradient("L").convert("RGB").resize((448, 448))


@pytest.mark.parametrize("layer", [0, 2])
def test_attention_to_the_image_is_that_of_eager_attention(subject: Subject, layer: int) -> None:
    (encoded,) = subject.encode_pictures(CLIP, [PICTURE])
    model, ids = subject.engine_of(CLIP).model, prompt_ids(subject.engine_of(CLIP), "How many objects are there?")
    found = attend_to_image(model, ids, encoded.tokens, layer)
    usual = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        eager = model(input_ids=ids[None], images=[encoded.tokens], output_attentions=True).attentions[layer]
    finally:
        model.set_attn_implementation(usual)
    start = ids.tolist().index(-200)
    torch.testing.assert_close(found, eager[0, :, -1, start : start + 64].mean(0), atol=1e-5, rtol=1e-4)


@given(st.integers(2, 6), st.integers(0, 99), st.data())
def test_the_window_stands_out_most_from_its_neighbours(n: int, seed: int, data: st.DataObject) -> None:
    sides = sorted(data.draw(st.sets(st.integers(1, n), min_size=1)))
    relevance = torch.rand(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def total(row: int, col: int, side: int) -> float:
        return float(relevance[row : row + side, col : col + side].sum())

    leads = {}
    for side in sides:
        places = [(row, col) for row in range(n - side + 1) for col in range(n - side + 1)]
        row, col = max(places, key=lambda place: total(*place, side))
        beside = [(row - 1, col), (row + 1, col), (row, col - 1), (row, col + 1)]
        sums = [total(*place, side) for place in beside if place in places]
        leads[Box(row, col, side)] = total(row, col, side) - sum(sums) / len(sums) if sums else 0.0
    assert choose_box(relevance, sides) == max(leads, key=leads.__getitem__)


def test_a_peak_is_found_at_its_place() -> None:
    relevance = torch.ones(8, 8)
    relevance[5:7, 2:4] = 9
    assert choose_box(relevance, [2, 3, 4]) == (5, 2, 2)


def test_windows_are_the_native_size_to_twice_that_in_the_pictures_own_pixels() -> None:
    assert window_sides(8, 112, 448) == [2, 3, 4]  # a cell of the view is 56 pixels
    assert window_sides(8, 112, 100) == [8]
    assert window_sides(24, 336, 1344) == [6, 7, 8, 10, 11, 12]


def tokens() -> ImageTokens:
    return ImageTokens(torch.zeros(64, 4), ImageSpan.sequential(64))


def test_a_crop_of_everything_has_the_pictures_places() -> None:
    both = join_views(tokens(), tokens(), Box(0, 0, 8), 8, raster=True)
    assert both.span.length == 64
    assert both.span.positions is not None
    assert both.span.positions.tolist() == [*range(64), *range(64)]


def test_a_crops_tokens_lie_inside_their_box_or_count_on() -> None:
    both = join_views(tokens(), tokens(), Box(2, 4, 2), 8, raster=True)
    assert both.span.positions is not None
    own = both.span.positions[64:].view(8, 8)
    assert torch.equal((own // 8).unique(), torch.tensor([2.0, 3.0]))  # rows 2 and 3
    assert float(own[0, 0]) == 8 * 2 + 4 + 2 / 16 - 0.5
    counted = join_views(tokens(), tokens(), Box(2, 4, 2), 8, raster=False)
    assert (counted.span.count, counted.span.length) == (128, 128)


def test_both_views_are_answered_from(subject: Subject) -> None:
    ways = [Variant(name, {"llm_positions": name}, "crop") for name in ("raster", "sequential")]
    for way in ways:
        ((first, second),) = subject.encode_for_questions(
            way, [PICTURE], [["How many objects are there?", "What is it?"]]
        )
        (whole,) = subject.encode_pictures(CLIP, [PICTURE])
        for encoded in (first, second):
            assert len(encoded.tokens.features) == 128
            torch.testing.assert_close(encoded.tokens.features[:64], whole.tokens.features)
