"""Compiled hats are those of SciPy and torch, to the bit."""

from __future__ import annotations

import math
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from qlip import kernels
from tests.qlip.kernels.images import noise
from tests.qlip.samples import paper_partition, patchwork


def hat_loops() -> ModuleType:
    return sys.modules[kernels.load_loops().find_cell_hats.__module__]


@settings(max_examples=40)
@given(
    image=st.tuples(st.integers(1, 4), st.integers(2, 75), st.integers(2, 75)).map(lambda shape: noise(*shape)),
    patch_size=st.integers(2, 7),
    size=st.sampled_from([3, 5]),
    floors=st.lists(st.sampled_from([0.0, 0.5, 1.25]), min_size=1, max_size=4),
    band=st.sampled_from([1, 100, 2**16]),
)
def test_hats_are_those_of_scipys_opening_and_closing_of_torchs_average_pooling(image, patch_size, size, floors, band):
    """Also where a part of a cell, a row or a column is left over, and where no cell is."""
    channels = len(image)
    by_channel = [np.linspace(floor, 2 * floor, channels, dtype=np.float32) for floor in floors]
    module = hat_loops()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BAND", band)
        levels = module.find_cell_hats(image, patch_size, size, by_channel)
    assert len(levels) == len(floors)
    for floor, found in zip(by_channel, levels, strict=True):
        image = image[:, : image.shape[1] // 2 * 2, : image.shape[2] // 2 * 2]
        image = F.avg_pool2d(torch.from_numpy(image), 2).numpy() if image.size else image[:, ::2, ::2]
        rows, cols = image.shape[1] // patch_size, image.shape[2] // patch_size
        assert found.shape == (rows, cols)
        if found.size:
            assert np.array_equal(found, cell_hats(image, patch_size, size, floor))


def cell_hats(image: np.ndarray, patch_size: int, size: int, floor: np.ndarray) -> np.ndarray:
    """By SciPy, of the image extended by its border, as its openings see it."""
    wide, window = np.pad(image, ((0, 0), (size, size), (size, size)), mode="edge"), (1, size, size)
    hats = np.maximum(wide - ndimage.grey_opening(wide, window), ndimage.grey_closing(wide, window) - wide)
    lowered = np.maximum(hats[:, size:-size, size:-size] - floor[:, None, None], 0).max(0)
    rows, cols = lowered.shape[0] // patch_size, lowered.shape[1] // patch_size
    whole = lowered[: rows * patch_size, : cols * patch_size]
    return whole.reshape(rows, patch_size, cols, patch_size).max((1, 3))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
@pytest.mark.parametrize("place", [(0, 0), (27, 41), (55, 83)])
def test_hats_of_pixels_that_are_not_finite_are_left_to_numpy(loops, value, place):
    image = noise(3, 56, 84)
    image[1, place[0] // 2 * 2 : place[0] // 2 * 2 + 2, place[1] // 2 * 2 : place[1] // 2 * 2 + 2] = value
    assert loops.find_cell_hats(image, 7, 5, [np.zeros(3, np.float32)]) is None


def test_large_windows_are_numpys(monkeypatch, loops):
    monkeypatch.setattr(loops, "find_cell_hats", None)
    assert len(paper_partition(patchwork((8, 8)), 4, alpha=1.5, criterion="structure", structure_size=33)) > 1


def test_what_was_compiled_before_is_read_from_disk(loops):
    """A key that changes with each process would compile anew, and leave a file, every time."""
    loops.find_cell_hats(noise(3, 28, 28), 14, 5, [np.zeros(3, np.float32)])
    hat_loops()._make_hats.cache_clear()
    loops.find_cell_hats(noise(3, 28, 28), 14, 5, [np.zeros(3, np.float32)])
    statistics = hat_loops()._make_hats(5).stats
    assert sum(statistics.cache_hits.values()) == 1 and not statistics.cache_misses


def test_code_of_different_windows_has_different_names(loops):
    """Read from disk together, code of one name crashes."""
    names = {hat_loops()._make_hats(size).py_func.__qualname__ for size in (3, 5)}
    assert len(names) == 2
