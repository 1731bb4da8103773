"""The noise of an image, and trees that do not cut it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qlip import QLIPConfig, partition
from qlip.cutting import ImageCutter
from qlip.scores.criteria import WINDOWED, score_pyramid
from qlip.scores.noise import estimate_noise

FLOOR = {"max_tokens": None, "native_grid": 8, "geometry": "native", "noise_floor": True}


def noisy(sigma: float, side: int = 448, seed: int = 0) -> torch.Tensor:
    """A grey image with white noise."""
    return torch.randn(3, side, side, generator=torch.Generator().manual_seed(seed)) * sigma


@given(st.floats(0.01, 2), st.integers(0, 99), st.sampled_from([112, 448, 1344]))
@settings(max_examples=20)
def test_it_is_the_standard_deviation_of_white_noise_whatever_else_is_smooth(sigma, seed, side):
    ramp = torch.linspace(-2, 2, side)
    found = estimate_noise(noisy(sigma, side, seed) + ramp + ramp[:, None] ** 2)
    torch.testing.assert_close(found, torch.full((3,), sigma), rtol=0.1, atol=0)


def test_each_channel_has_its_own_and_an_image_without_noise_none():
    image = noisy(1.0) * torch.tensor([0.1, 0.4, 0.0])[:, None, None]
    torch.testing.assert_close(estimate_noise(image), torch.tensor([0.1, 0.4, 0.0]), rtol=0.1, atol=1e-9)


@pytest.mark.parametrize("shape", [(2, 2), (3, 5), (57, 33), (448, 448), (777, 1111), (1501, 2003)], ids=str)
def test_an_image_and_its_pixels_are_equally_noisy(shape):
    levels = np.random.default_rng(0).normal(128, 20, (*shape, 3)).clip(0, 255).astype(np.uint8)
    pixels = torch.from_numpy(levels.transpose(2, 0, 1).astype(np.float32) / 255)
    torch.testing.assert_close(estimate_noise(Image.fromarray(levels)), estimate_noise(pixels), rtol=1e-5, atol=0)


@pytest.mark.parametrize("criterion", WINDOWED)
@pytest.mark.parametrize("strength", [5, 10, 20, 40, 80])
def test_noise_alone_splits_nothing(strength, criterion):
    assert len(partition(noisy(strength / 255 / 0.27), **FLOOR, criterion=criterion)) == 64


@pytest.mark.parametrize(
    ("criterion", "strength"),
    [*(("structure", strength) for strength in (20, 40, 80)), ("objects", 40), ("objects", 80)],
)
def test_without_the_floor_strong_noise_splits(criterion, strength):
    rule = FLOOR | {"noise_floor": False, "criterion": criterion}
    assert len(partition(noisy(strength / 255 / 0.27), **rule)) > 64


def test_an_object_on_noise_is_cut_as_far_as_the_noise_allows():
    image = noisy(0.05)
    image[:, 100:106, 100:106] += 3
    sizes = partition(image, **FLOOR).sizes.tolist()
    assert 1 in sizes
    assert len(sizes) < 64 + 3 * 12
    image += noisy(0.5, seed=1)  # single cells would show more noise than the bound
    assert 1 not in partition(image, **FLOOR).sizes.tolist()


def test_scores_are_lowered_level_by_level_and_0_where_cells_would_be_too_noisy():
    image, sigma = noisy(0.4), torch.tensor([0.4, 0.2, 0.1])
    plain = score_pyramid(image[:1], 14, 3)
    lowered = score_pyramid(image[:1], 14, 3, noise=sigma[:1])
    assert not lowered[1].any()  # 0.4 > 0.17
    assert not lowered[2].any()  # 0.2 > 0.17
    own = score_pyramid(image[:1], 14, 3, noise=torch.zeros(1))
    assert all(torch.equal(*pair) for pair in zip(own, plain, strict=True))
    assert (lowered[3] < plain[3]).all()


def test_alpha_0_is_the_uniform_grid_and_infinity_the_coarsest_tree_all_the_same():
    image = noisy(0.6)
    assert len(partition(image, alpha=0.0, **FLOOR)) == 32 * 32
    assert len(partition(image, alpha=math.inf, **FLOOR)) == 64


@pytest.mark.parametrize("side", [230, 300, 400, 448, 1000])
@pytest.mark.parametrize("strength", [20, 40])
def test_noise_is_measured_before_the_image_is_enlarged_or_reduced(side, strength):
    noise = np.random.default_rng(0).normal(128, strength, (side, side, 3)).clip(0, 255)
    settings = QLIPConfig(geometry="native", max_tokens=None, noise_floor=True, max_cells=1024)
    assert len(ImageCutter(14, 112).find_leaves(Image.fromarray(noise.astype(np.uint8)), settings)) == 64


@pytest.mark.parametrize(("criterion", "structure_size", "kept"), [("structure", 5, 0.95), ("objects", 7, 0.93)])
@pytest.mark.parametrize("name", ["astronaut", "coffee", "rocket", "camera", "chelsea", "retina"])
def test_photographs_keep_their_detail(name, criterion, structure_size, kept):
    image = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
    native = QLIPConfig(geometry="native", max_tokens=None, criterion=criterion, structure_size=structure_size)
    with_floor, without = (
        len(ImageCutter().find_leaves(image, replace(native, noise_floor=floor))) for floor in (True, False)
    )
    assert kept * without < with_floor <= without


def test_texture_in_a_part_of_an_image_is_not_its_noise():
    grass = Image.fromarray(skimage.data.grass()).convert("RGB")
    half = grass.copy()
    half.paste(Image.fromarray(skimage.data.astronaut()).crop((0, 0, 512, 160)), (0, 0))
    assert estimate_noise(half).max() < 0.5 * estimate_noise(grass).max()
    native = QLIPConfig(geometry="native", max_tokens=None)
    leaves = [len(ImageCutter().find_leaves(half, replace(native, noise_floor=floor))) for floor in (True, False)]
    assert leaves[0] > 0.92 * leaves[1]


def test_a_part_without_noise_hides_none():
    image = noisy(0.3)
    image[:, :, :56] = 1.0  # saturated
    torch.testing.assert_close(estimate_noise(image), torch.full((3,), 0.3), rtol=0.1, atol=0)


def test_an_image_without_squares_has_no_noise():
    assert estimate_noise(torch.ones(3, 1, 14)).tolist() == [0, 0, 0]
    assert estimate_noise(Image.new("RGB", (500, 1))).tolist() == [0, 0, 0]
