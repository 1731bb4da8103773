"""Compiled medians of fine detail are numpy's, whatever an image shows and however large it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qlip.scores.noise import estimate_noise


@settings(max_examples=40)
@given(st.integers(1, 120), st.integers(1, 120), st.sampled_from([1, 2, 12, 256]), st.integers(0, 9))
def test_pixels_are_as_noisy_as_their_image(height, width, levels, seed):
    """The same bits; the image is read through Pillow, by numpy."""
    pixels = np.random.default_rng(seed).integers(0, levels, (height, width, 3), np.uint8)
    assert torch.equal(estimate_noise(pixels), estimate_noise(Image.fromarray(pixels)))


@pytest.mark.parametrize("shape", [(448, 448), (777, 1111), (1501, 2003)], ids=str)
def test_so_are_those_of_a_large_image_of_which_some_squares_are_read(shape):
    pixels = np.random.default_rng(0).normal(128, 20, (*shape, 3)).clip(0, 255).astype(np.uint8)
    pixels[: shape[0] // 2, :, 1] = 128
    assert torch.equal(estimate_noise(pixels), estimate_noise(Image.fromarray(pixels)))


def test_the_largest_detail_is_counted():
    corners = np.array([[255, 0], [0, 255]], np.uint8)
    pixels = np.tile(corners, (30, 30))[..., None].repeat(3, axis=-1)
    torch.testing.assert_close(estimate_noise(pixels), torch.full((3,), 510 / 255 / 2 / 0.6745))


def test_pixels_that_are_no_contiguous_array_are_read():
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    assert torch.equal(estimate_noise(pixels[:, ::-1]), estimate_noise(Image.fromarray(pixels[:, ::-1])))
