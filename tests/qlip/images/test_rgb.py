"""Images of Pillow's modes become RGB as Pillow's own composite on white has them."""

from __future__ import annotations

import pytest
from PIL import Image

from qlip.images.rgb import to_rgb


@pytest.mark.parametrize("make", [lambda image: image.quantize(16), lambda image: image.convert("P")])
def test_a_palette_with_transparent_colours_lies_on_white(make):
    """Made by Pillow in memory it says so in its palette alone."""
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    clear.putpixel((0, 0), (200, 0, 0, 255))
    white = Image.alpha_composite(Image.new("RGBA", (4, 4), "white"), make(clear).convert("RGBA")).convert("RGB")
    assert to_rgb(make(clear)).tobytes() == white.tobytes()
