"""Compiled sweeps have the bits of numpy's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlip.scores import reconstruction, structure
from tests.qlip.kernels.images import noise
from tests.qlip.scores.test_reconstruction import draw_planes


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    planes=st.integers(1, 4),
    height=st.integers(1, 50),
    width=st.integers(1, 50),
    rounds=st.integers(0, 3),
)
def test_planes_grow_as_by_numpy(loops, seed, planes, height, width, rounds):
    marker, mask = draw_planes(seed, planes, height, width, levels=30)
    found = reconstruction.reconstruct(marker, mask, rounds)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reconstruction, "find_loops", lambda array: None)
        assert np.array_equal(found, reconstruction.reconstruct(marker, mask, rounds))


def test_views_of_any_strides_grow_alike(loops):
    marker, mask = draw_planes(0, 3, 30, 40, levels=30)
    expected = reconstruction.reconstruct(marker, mask)
    turned = [np.ascontiguousarray(planes.transpose(2, 1, 0)).transpose(2, 1, 0) for planes in (marker, mask)]
    assert np.array_equal(reconstruction.reconstruct(*turned), expected)


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
