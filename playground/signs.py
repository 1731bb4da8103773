"""Signs: plates with a number of one to three digits or a short word, in fonts that ship with matplotlib.

A text is readable if its capitals are at least `LEAST_READABLE` pixels high, as seen: below that the strokes of two
letters fall into one pixel. In pictures of the tower's own size, 112 px, readable signs therefore take a large part of
the width; in larger pictures they need the quadtree.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_ALL_WORDS = """
    stop exit open shut push pull taxi bus bank cafe shop park food milk fish rice salt tea sale free help fire gate
    left up down hall room lift stay slow wait turn note book zoo
"""
WORDS = tuple(_ALL_WORDS.split())
"""All words of signs, of two to four letters."""
LONGEST_TEXT = 4
CHARACTERS = "".join(sorted({*"0123456789", *"".join(WORDS)}))
"""Characters of signs; letters in lower case."""
LEAST_READABLE = 8
"""Least height of readable capitals in pixels of the picture that the tower sees."""

FONTS = {
    "training": ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSerif", "cmss10"),
    "test": ("STIXGeneral", "STIXGeneralBol"),
}
"""Font files of matplotlib; the family STIX is held out for the test split."""
PLATES = (((245, 245, 240), (20, 20, 25)), ((25, 30, 35), (240, 240, 235)), ((240, 238, 225), (60, 45, 40)))
"""Colours of plates and texts, none of them one of the objects'."""
MARGIN = 0.4
"""Space between text and edge of the plate, in heights of the capitals."""


class Plate(NamedTuple):
    """A drawn plate."""

    pixels: np.ndarray
    """float32 (rows, cols, 3) in 0..255."""
    edges: tuple[float, ...]
    """Columns between the characters, the outer edges included."""


def choose_text(rng: np.random.Generator) -> str:
    """Chooses a number, half of the time, or a word; numbers of one, two and three digits are equally frequent."""
    if rng.random() < 0.5:
        digits = int(rng.integers(1, 4))
        return str(rng.integers(10 ** (digits - 1) if digits > 1 else 0, 10**digits))
    return WORDS[rng.integers(len(WORDS))]


def draw_plate(text: str, height: int, fonts: str, rng: np.random.Generator) -> Plate:
    """Draws a plate that fits its text.

    Args:
        text: digits, or a word, which is drawn in capitals.
        height: height of the capitals in pixels.
        fonts: a key of `FONTS`.
        rng: chooses font and colours.
    """
    font = _font(FONTS[fonts][rng.integers(len(FONTS[fonts]))], height)
    plate, ink = PLATES[rng.integers(len(PLATES))]
    left, top, right, bottom = font.getbbox(text.upper())
    margin = max(1, round(MARGIN * height))
    size = (int(right - left) + 2 * margin, int(bottom - top) + 2 * margin)
    image = Image.new("RGB", size, plate)
    ImageDraw.Draw(image).text((margin - left, margin - top), text.upper(), fill=ink, font=font)
    edges = tuple(margin - left + font.getlength(text.upper()[:count]) for count in range(len(text) + 1))
    return Plate(np.asarray(image, dtype=np.float32), edges)


@cache
def _font(name: str, height: int) -> ImageFont.FreeTypeFont:
    """Loads a font at the size that makes its capitals `height` pixels high."""
    import matplotlib

    path = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf")
    trial = ImageFont.truetype(path, 200).getbbox("H")
    return ImageFont.truetype(path, max(1, round(200 * height / (trial[3] - trial[1]))))
