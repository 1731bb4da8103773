"""Compiled sweeps have the bits of numpy's."""

from __future__ import annotations

import importlib
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlip.scores import structure
from qlip.scores.reconstruction import reconstruct
from tests.qlip.kernels.images import noise
from tests.qlip.scores.test_reconstruction import draw_planes


@pytest.fixture(scope="module")
def growing(loops: ModuleType) -> ModuleType:
    """Imported once the loops are on: a module that is imported before them is not compiled."""
    return importlib.import_module("qlip.kernels.growing")


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    planes=st.integers(1, 4),
    height=st.integers(1, 50),
    width=st.integers(1, 50),
    rounds=st.integers(0, 3),
)
def test_planes_grow_as_by_numpy(growing, seed, planes, height, width, rounds):
    marker, mask = draw_planes(seed, planes, height, width, levels=30)
    expected, spare = reconstruct(marker, mask, rounds), np.empty((4, height * width), np.float32)
    for level, bound in zip(marker, mask, strict=True):
        growing.grow_plane(level, bound, rounds, spare)
    assert np.array_equal(marker, expected)


@settings(max_examples=40)
@given(
    image=st.tuples(st.integers(1, 4), st.integers(2, 75), st.integers(2, 75)).map(lambda shape: noise(*shape)),
    patch_size=st.integers(2, 7),
    size=st.sampled_from([3, 7]),
    floor=st.sampled_from([None, 0.5, 1.25]),
)
def test_hats_of_objects_are_those_of_numpy(loops, image, patch_size, size, floor):
    """Also where a part of a cell, a row or a column is left over, and where no cell is."""
    floors = [None if floor is None else np.full(len(image), floor / 2**level, np.float32) for level in range(3)]
    found = list(structure._find_object_hats(image, patch_size, size, floors))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(structure, "find_loops", lambda array: None)
        expected = list(structure._find_object_hats(image, patch_size, size, floors))
    assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))
