"""An image is resized as Pillow resizes it; with compiled loops, see `tests.qlip.kernels`, to the same bits."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from qlip.images import resizing
from qlip.images.resizing import BicubicResizer, copy_pixels


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("band", [1, 150, 2**18], ids=["row by row", "some rows", "at once"])
@pytest.mark.parametrize("size", [(1, 1), (70, 7), (3, 101)])
def test_all_pixels_are_copied(monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], band: int) -> None:
    monkeypatch.setattr(resizing, "BAND", band)
    image = noise(*size)
    assert np.array_equal(copy_pixels(image), np.asarray(image))


@pytest.mark.parametrize("box", [None, (1.5, 0.25, 30.0, 20.0)], ids=["the whole", "a part"])
def test_it_is_bicubic_with_antialiasing(box: tuple[float, float, float, float] | None) -> None:
    image = noise(40, 30)
    expected = image.resize((13, 21), Image.Resampling.BICUBIC, box=box)
    assert np.array_equal(BicubicResizer(image).resize(13, 21, box), np.asarray(expected))


def test_an_image_of_the_wanted_size_keeps_its_pixels() -> None:
    image = noise(40, 30)
    assert np.array_equal(BicubicResizer(image).resize(40, 30), np.asarray(image))
