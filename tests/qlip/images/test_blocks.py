"""Blocks that are resized by themselves are those of the whole image resized."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qlip.images.blocks import Area, find_runs, resize_blocks
from qlip.images.resizing import BicubicResizer

P = 14


def photograph(width: int, height: int) -> Image.Image:
    return Image.fromarray(skimage.data.astronaut()).resize((width, height))


def resized_whole(image: Image.Image, rows: int, cols: int) -> np.ndarray:
    """What Pillow makes of the whole image, block by block: (rows, cols, P, P, 3)."""
    whole = np.asarray(image.resize((cols * P, rows * P), Image.Resampling.BICUBIC))
    return whole.reshape(rows, P, cols, P, 3).swapaxes(1, 2)


def some_places(rows: int, cols: int, share: float) -> np.ndarray:
    """Places of blocks in raster order."""
    return np.argwhere(np.random.default_rng(0).random((rows, cols)) < share)


@pytest.mark.parametrize("share", [0.02, 0.4, 1.0])
@pytest.mark.parametrize(("side", "size"), [(1344, 2), (1344, 4), (672, 2), (336, 4)])
def test_they_are_equal_where_borders_are_whole_pixels(side: int, size: int, share: float) -> None:
    image, count = photograph(side, side), 96 // size
    places = some_places(count, count, share)
    blocks = resize_blocks(BicubicResizer(image), (96, 96), size, places, P)
    assert np.array_equal(blocks, resized_whole(image, count, count)[tuple(places.T)])


@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("shape", [(896, 896), (1921, 1083), (500, 333)])
def test_elsewhere_hardly_a_value_differs_and_none_by_more_than_a_level(shape: tuple[int, int], share: float) -> None:
    image = photograph(*shape)
    places = some_places(30, 40, share)
    blocks = resize_blocks(BicubicResizer(image), (60, 80), 2, places, P).astype(int)
    difference = abs(blocks - resized_whole(image, 30, 40)[tuple(places.T)])
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.002


def test_blocks_that_stick_out_of_the_grid_leave_the_others_where_they_are() -> None:
    image = photograph(70, 42)  # 5 x 3 cells, so 2 x 1 whole blocks
    blocks = resize_blocks(BicubicResizer(image), (3, 5), 2, np.array([[0, 1]]), P)
    expected = image.resize((P, P), Image.Resampling.BICUBIC, box=(28, 0, 56, 28))
    assert np.array_equal(blocks[0], np.asarray(expected))


@given(st.sets(st.tuples(st.integers(0, 5), st.integers(0, 9)), min_size=1))
@settings(max_examples=200)
def test_runs_hold_every_place_once_in_their_order(wanted: set[tuple[int, int]]) -> None:
    places = np.array(sorted(wanted))
    runs = find_runs(places)
    assert [index for _, own in runs for index in range(own.start, own.stop)] == list(range(len(places)))
    for area, own in runs:
        row, col = places[own].T
        assert area == Area(row[0], col.min(), row[0] + 1, col.max() + 1)
        assert set(row) == {row[0]}
        assert len(area) < 2 * len(row)  # no more blocks in vain than wanted ones
