"""`qlip.extract_patches`: every leaf's own pixels, resampled to one patch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import qlip
from tests.conftest import Photograph
from tests.qlip.samples import paper_partition

LAYOUTS = ("aligned", "centered")


def naive_patches(image: torch.Tensor, leaves: qlip.Leaves, patch_size: int) -> torch.Tensor:
    patches = []
    for row, col, size in (leaves.boxes * patch_size).tolist():
        pixels = image[None, :, row : row + size, col : col + size]
        shape = (patch_size, patch_size)
        patches.append(F.interpolate(pixels, shape, mode="bilinear", antialias=True, align_corners=False)[0])
    return torch.stack(patches)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("alpha", [0.0, 0.8, 2.0, math.inf])
@pytest.mark.parametrize("grid", [(1, 1), (1, 9), (7, 13), (17, 17)], ids=str)
def test_equals_resampling_leaf_by_leaf(photograph: Photograph, grid, alpha, layout):
    image = photograph("chelsea", grid[0] * 14, grid[1] * 14)
    leaves = paper_partition(image, 14, alpha=alpha, layout=layout)
    patches = qlip.extract_patches(image, leaves, 14)
    assert patches.shape == (len(leaves), 3, 14, 14) and patches.dtype == image.dtype
    torch.testing.assert_close(patches, naive_patches(image, leaves, 14), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_agrees_with_pillow_on_whole_leaves(photograph: Photograph, size):
    """Pillow's bilinear reduction of each leaf, cut out and treated as an image of its own."""
    image = photograph("coffee", 16 * 14, 16 * 14)
    leaves = paper_partition(image, 14, alpha=math.inf, max_leaf=size)
    patches = qlip.extract_patches(image, leaves, 14)
    assert set(leaves.boxes[:, 2].tolist()) == {size}
    for patch, (row, col, _) in zip(patches, (leaves.boxes * 14).tolist(), strict=True):
        for channel in range(3):
            pixels = image[channel, row : row + size * 14, col : col + size * 14].numpy()
            expected = Image.fromarray(np.ascontiguousarray(pixels)).resize((14, 14), Image.Resampling.BILINEAR)
            np.testing.assert_allclose(patch[channel].numpy(), np.asarray(expected), atol=1e-4)


@pytest.mark.parametrize("patch_size", [4, 14, 16])
def test_a_leaf_of_one_cell_is_left_bit_for_bit(patch_size):
    image = torch.randn(3, 9 * patch_size, 6 * patch_size)
    leaves = paper_partition(image, patch_size, alpha=5.0, criterion="gradient")
    patches = qlip.extract_patches(image, leaves, patch_size)
    cells = [index for index, size in enumerate(leaves.boxes[:, 2].tolist()) if size == 1]
    assert cells
    for index in cells:
        row, col = (leaves.boxes[index, :2] * patch_size).tolist()
        assert torch.equal(patches[index], image[:, row : row + patch_size, col : col + patch_size])


def test_the_uniform_grid_is_the_usual_unfolding():
    image = torch.randn(3, 5 * 14, 7 * 14)
    leaves = paper_partition(image, 14, alpha=0.0)
    expected = F.unfold(image[None], kernel_size=14, stride=14)[0].T.reshape(35, 3, 14, 14)
    assert torch.equal(qlip.extract_patches(image, leaves, 14), expected)


def test_pixels_of_the_neighbours_do_not_leak_in():
    image = torch.randn(3, 8 * 14, 8 * 14)
    leaves = paper_partition(image, 14, alpha=math.inf)
    before = qlip.extract_patches(image, leaves, 14)
    changed = image.clone()
    changed[:, :, 4 * 14 :] = 1e4  # the two leaves on the right
    after = qlip.extract_patches(changed, leaves, 14)
    assert torch.equal(before[[0, 2]], after[[0, 2]])


def test_a_plain_area_stays_what_it_is():
    image = torch.full((3, 16 * 14, 16 * 14), 0.7)
    patches = qlip.extract_patches(image, paper_partition(image, 14, alpha=1.0), 14)
    torch.testing.assert_close(patches, torch.full_like(patches, 0.7))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_keeps_the_image_type(dtype):
    image = torch.randn(3, 8 * 14, 8 * 14).to(dtype)
    leaves = paper_partition(image, 14, alpha=math.inf)
    patches = qlip.extract_patches(image, leaves, 14)
    assert patches.dtype == dtype
    expected = naive_patches(image.double(), leaves, 14)
    torch.testing.assert_close(patches.double(), expected, atol=2e-2, rtol=2e-2)


def test_gradients_reach_the_pixels():
    image = torch.randn(3, 8 * 14, 8 * 14)
    leaves = paper_partition(image, 14, alpha=3.0, max_tokens=20)
    image.requires_grad_()
    qlip.extract_patches(image, leaves, 14).sum().backward()
    assert (image.grad != 0).all()


@pytest.mark.parametrize("geometry", ["grid", "native"])
@pytest.mark.parametrize("place", [(0, 4), (3, 0), (0, -1)])
def test_a_leaf_outside_of_the_image_is_refused(geometry, place):
    leaves = qlip.Leaves(torch.tensor([[*place, 1]]), (3, 4))
    with pytest.raises(ValueError, match="outside of the image's 3 x 4 cells"):
        qlip.extract_patches(torch.zeros(3, 42, 56), leaves, 14, geometry)


def test_leaves_of_another_grid_are_refused():
    leaves = paper_partition(torch.zeros(3, 8 * 14, 8 * 14), 14)
    with pytest.raises(ValueError, match="8"):
        qlip.extract_patches(torch.zeros(3, 7 * 14, 8 * 14), leaves, 14)
