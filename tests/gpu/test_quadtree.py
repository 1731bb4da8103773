"""The quadtree on a GPU cuts as on the CPU: the same leaves, the same patches, and one wait for the result."""

from __future__ import annotations

import pytest
import torch

import qlip
from qlip.scores.criteria import score_pyramid

SIZES = [(336, 336), (448, 672), (896, 602)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["astronaut", "coffee"])
@pytest.mark.parametrize("criterion", ["gradient", "structure", "objects", "diagonal", "random"])
@pytest.mark.parametrize("budget", [None, 400])
def test_leaves_are_those_of_the_cpu(device, photograph, criterion, name, size, budget):
    """Pixels are whole numbers, whose differences and halves float32 holds exactly, so that ties are ties on both."""
    image = photograph(name, *size, normalised=False)
    alpha = 0.5 if criterion == "random" else 40.0
    options = {"criterion": criterion, "alpha": alpha, "max_tokens": budget, "coarsest": "any"}
    expected = qlip.partition(image, **options)
    found = qlip.partition(image.to(device), **options)
    assert len(expected) > 16 and len(expected.sizes.unique()) > 1
    assert torch.equal(found.boxes, expected.boxes)


def test_scores_of_variance_are_those_of_the_cpu_to_rounding(device, photograph):
    image = photograph("coffee", 448, 672)
    found, expected = (score_pyramid(place, 14, 4, "variance") for place in (image.to(device), image))
    for level, score in zip(found, expected, strict=True):
        torch.testing.assert_close(level.cpu(), score, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("geometry", ["grid", "native"])
def test_patches_are_those_of_the_cpu(device, photograph, geometry):
    image = photograph("astronaut", 672, 672)
    leaves = qlip.partition(image, alpha=0.8, geometry=geometry)
    expected = qlip.extract_patches(image, leaves, geometry=geometry)
    found = qlip.extract_patches(image.to(device), leaves, geometry=geometry)
    assert found.device.type == device
    torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=0)


def test_a_float16_image_keeps_its_dtype(device, photograph):
    image = photograph("astronaut", 336, 336).to(device, torch.float16)
    patches = qlip.extract_patches(image, qlip.partition(image))
    assert patches.dtype == torch.float16 and patches.isfinite().all()
