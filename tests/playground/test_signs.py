"""Signs: numbers and words on plates, as high as asked for, in fonts that differ between training and test."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest

from playground.objects import COLOURS
from playground.signs import CHARACTERS, FONTS, LONGEST_TEXT, PLATES, WORDS, choose_text, draw_plate

FONT_FOLDER = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def test_texts_are_numbers_of_one_to_three_digits_or_words():
    texts = [choose_text(np.random.default_rng(seed)) for seed in range(900)]
    numbers = [text for text in texts if text.isdigit()]
    assert 380 < len(numbers) < 520
    assert all(text in WORDS for text in texts if not text.isdigit())
    assert all(str(int(text)) == text for text in numbers)
    by_length = [sum(len(text) == digits for text in numbers) for digits in (1, 2, 3)]
    assert min(by_length) > 110
    assert set("".join(texts)) == set(CHARACTERS)


def test_words_are_distinct_short_and_in_lower_case():
    assert len(set(WORDS)) == len(WORDS) >= 30
    assert all(word.isalpha() and word.islower() and 2 <= len(word) <= LONGEST_TEXT for word in WORDS)


def test_the_fonts_exist_and_a_family_is_held_out():
    families = {split: {name[:4] for name in names} for split, names in FONTS.items()}
    assert families["training"].isdisjoint(families["test"])
    assert all((FONT_FOLDER / f"{name}.ttf").is_file() for names in FONTS.values() for name in names)


@pytest.mark.parametrize("fonts", FONTS)
@pytest.mark.parametrize("height", [8, 16, 40])
def test_capitals_are_as_high_as_asked_for(height, fonts):
    for seed in range(4):
        plate = draw_plate("hihi", height, fonts, np.random.default_rng(seed)).pixels
        ground = plate[0, 0]
        inked = np.abs(plate - ground).max(-1).max(1) > 100
        assert inked.sum() == pytest.approx(height, abs=1 + 0.05 * height)
        assert not inked[0] and not inked[-1]


def test_plates_have_no_colour_of_an_object_and_texts_contrast():
    for plate, ink in PLATES:
        assert np.abs(np.array(plate) - ink).max() > 150
        assert min(np.abs(np.array(plate) - colour).max() for colour in COLOURS.values()) > 40


def test_a_plate_fits_its_text():
    widths = [draw_plate(text, 20, "training", np.random.default_rng(0)).pixels.shape[1] for text in ("1", "42", "742")]
    assert widths == sorted(widths) and widths[0] < widths[2]


@pytest.mark.parametrize("text", ["742", "ill", "stop"])
def test_edges_lie_between_the_characters(text):
    for seed in range(3):
        whole, first = (draw_plate(part, 40, "training", np.random.default_rng(seed)) for part in (text, text[0]))
        assert len(whole.edges) == len(text) + 1 and list(whole.edges) == sorted(whole.edges)
        inked = [np.abs(plate.pixels - plate.pixels[0, 0]).max((0, 2)) > 100 for plate in (whole, first)]
        border = round(whole.edges[1])
        # Up to the first edge the plate shows what a plate with the first character alone shows, to a pixel.
        assert np.flatnonzero(inked[0][: border + 1]).max() == pytest.approx(np.flatnonzero(inked[1]).max(), abs=2)
