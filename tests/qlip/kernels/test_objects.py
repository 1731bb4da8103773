"""Compiled hats by reconstruction have the bits of numpy's."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlip.scores import structure
from tests.qlip.kernels.images import noise


@settings(max_examples=40)
@given(
    image=st.tuples(st.integers(1, 4), st.integers(2, 75), st.integers(2, 75)).map(lambda shape: noise(*shape)),
    patch_size=st.integers(2, 7),
    size=st.sampled_from([3, 7]),
    floor=st.sampled_from([None, 0.5, 1.25]),
    band=st.sampled_from([1, 300, 2**16]),
)
def test_hats_of_objects_are_those_of_numpy(loops, image, patch_size, size, floor, band):
    """Also where a part of a cell, a row or a column is left over, and where no cell is."""
    floors = [None if floor is None else np.full(len(image), floor / 2**level, np.float32) for level in range(3)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[loops.find_object_hats.__module__], "BAND", band)
        found = list(structure._find_cell_hats(image, patch_size, size, floors, objects=True))
        patch.setattr(structure, "find_loops", lambda array: None)
        expected = list(structure._find_cell_hats(image, patch_size, size, floors, objects=True))
    assert len(found) == len(floors)
    assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
@pytest.mark.parametrize("place", [(0, 0), (27, 41), (55, 83)])
def test_hats_of_pixels_that_are_not_finite_are_left_to_numpy(loops, value, place):
    image = noise(3, 56, 84)
    image[1, place[0] // 2 * 2 : place[0] // 2 * 2 + 2, place[1] // 2 * 2 : place[1] // 2 * 2 + 2] = value
    assert loops.find_object_hats(image, 7, 7, [np.zeros(3, np.float32)], 1) is None


def test_large_windows_are_numpys(loops, monkeypatch):
    image, floors = noise(3, 28, 28), [None]
    monkeypatch.setattr(loops, "find_object_hats", None)
    assert len(list(structure._find_cell_hats(image, 7, 33, floors, objects=True))) == 1
