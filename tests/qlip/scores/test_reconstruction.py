"""Reconstruction is scikit-image's once enough rounds are made, and one round already finds what does not wind."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.morphology import reconstruction

from qlip.scores.reconstruction import reconstruct
from tests.qlip.reference import grow

EVERYWHERE = np.ones((3, 3))
"""All eight neighbours of a pixel."""


def draw_planes(seed: int, planes: int, height: int, width: int, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Smoothed noise of a few levels, and a marker below it."""
    rng = np.random.default_rng(seed)
    mask = ndimage.uniform_filter(rng.random((planes, height, width)), (0, 3, 3), mode="nearest")
    mask = np.round(mask * levels).astype(np.float32)
    return mask - rng.integers(0, 4, mask.shape).astype(np.float32), mask


def reconstruct_exactly(marker: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.stack([reconstruction(*pair, footprint=EVERYWHERE) for pair in zip(marker, mask, strict=True)])


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10**6),
    planes=st.integers(1, 3),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    levels=st.integers(1, 60),
)
def test_many_rounds_are_scikit_images_reconstruction_and_one_is_a_lower_bound(seed, planes, height, width, levels):
    marker, mask = draw_planes(seed, planes, height, width, levels)
    before, exact = marker.copy(), reconstruct_exactly(marker, mask)
    assert np.array_equal(reconstruct(marker, mask, rounds=height + width), exact)
    once = reconstruct(marker, mask)
    assert np.array_equal(once, grow(marker, mask))
    assert (marker <= once).all() and (once <= exact).all()
    assert np.array_equal(marker, before)


@pytest.mark.parametrize("name", ["astronaut", "coffee", "rocket", "chelsea"])
def test_one_round_is_exact_at_most_pixels_of_photographs(name, photograph):
    mask = photograph(name, 224, 224).numpy()
    marker = ndimage.grey_opening(np.pad(mask, ((0, 0), (7, 7), (7, 7)), mode="edge"), (1, 7, 7))[:, 7:-7, 7:-7]
    assert (reconstruct(marker, mask) == reconstruct_exactly(marker, mask)).mean() > 0.85


def test_one_round_reaches_what_lies_ahead_and_not_what_is_around_a_corner():
    """A line to the right of the marker, whose end turns down; and a slanted one."""
    mask = np.zeros((2, 9, 9), np.float32)
    mask[0, 0], mask[0, :, -1] = 1, 1
    mask[1, range(9), range(9)] = 1
    marker = np.zeros_like(mask)
    marker[:, 0, 0] = 1
    once = reconstruct(marker, mask, rounds=1)
    assert once[0, 0].sum() == 9 and once[0, 1:].sum() == 1  # within 45 degrees of the end of the line
    assert np.array_equal(once[1], mask[1])
    assert np.array_equal(reconstruct(marker, mask, rounds=2), mask)


@pytest.mark.parametrize("name", ["coffee", "rocket"])
def test_turned_and_mirrored_images_grow_turned_and_mirrored(name, photograph):
    mask = photograph(name, 112, 112, normalised=False).numpy()
    marker = ndimage.grey_opening(mask, (1, 7, 7), mode="nearest")
    grown = reconstruct(marker, mask)
    for change in (np.fliplr, np.flipud, lambda image: image.T, lambda image: np.rot90(image, 1)):
        changed = [np.stack([change(plane) for plane in planes]) for planes in (marker, mask, grown)]
        assert np.array_equal(reconstruct(changed[0], changed[1]), changed[2])


def test_views_of_any_strides_grow_alike():
    marker, mask = draw_planes(0, 3, 30, 40, levels=30)
    turned = [np.ascontiguousarray(planes.transpose(2, 1, 0)).transpose(2, 1, 0) for planes in (marker, mask)]
    assert np.array_equal(reconstruct(*turned), reconstruct(marker, mask))
