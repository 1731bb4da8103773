"""Compiled sweeps have the bits of numpy's."""

from __future__ import annotations

import importlib
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlip.scores.reconstruction import reconstruct
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
    expected = reconstruct(marker, mask, rounds)
    for level, bound in zip(marker, mask, strict=True):
        turned, spare = np.empty((width, height), np.float32), np.empty((height, width), np.float32)
        growing.grow_plane(level, bound, np.ascontiguousarray(bound.T), rounds, turned, spare)
    assert np.array_equal(marker, expected)
