"""numpy on a CPU and torch elsewhere compute the same, in bands as at once, and numpy on the calling thread alone."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import qlip
from qlip import Leaves, QLIPConfig, patches
from qlip.cutting import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, ImageCutter
from qlip.scores import edges, structure
from tests.qlip.samples import CRITERIA, LAYOUTS, as_tuples, paper_partition, patchwork

SCORES = {
    "gradient": edges.gradient_scores,
    "diagonal": edges.diagonal_scores,
    "structure": lambda image, patch_size, levels: structure.structure_scores(image, patch_size, levels, 5),
    "structure, noise floor": lambda image, patch_size, levels: structure.structure_scores(
        image, patch_size, levels, 7, image[:, 0, 0] * 0 + 0.1
    ),
}


@pytest.mark.parametrize("band", [1, 400, 2**20], ids=["rows", "bands", "whole"])
@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize(("grid", "patch_size"), [((17, 40), 4), ((5, 3), 14), ((8, 9), 3)], ids=str)
def test_bands_of_an_array_score_as_a_whole_tensor(monkeypatch, grid, patch_size, score, band):
    """Tensors take the way of a GPU: no bands, torch's operators."""
    monkeypatch.setattr(edges, "SUMMARY_BAND", band)
    monkeypatch.setattr(structure, "HAT_BAND", band)
    image = patchwork(grid, patch_size)
    expected = score(image, patch_size, 2)
    found = score(image.numpy(), patch_size, 2)
    assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_views_of_any_strides_give_the_same_leaves_and_patches(criterion, layout):
    image = patchwork((9, 14))
    wide = torch.zeros(6, 36, 2 * 56)
    wide[::2, :, ::2] = image
    views = [image.permute(1, 2, 0).contiguous().permute(2, 0, 1), wide[::2, :, ::2], image[:1].expand(3, -1, -1)]
    for view, same in zip(views, [image, image, image[:1].repeat(3, 1, 1)], strict=True):
        options = {"alpha": 1.5, "criterion": criterion, "layout": layout, "max_tokens": 90}
        leaves = paper_partition(view, 4, **options)
        assert torch.equal(leaves.boxes, paper_partition(same, 4, **options).boxes)
        torch.testing.assert_close(qlip.extract_patches(view, leaves, 4), qlip.extract_patches(same, leaves, 4))


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("size", [(1, 1), (1, 50), (333, 2), (29, 31)], ids=str)
def test_the_smallest_and_thinnest_pictures_are_cut(criterion, size):
    settings = QLIPConfig(criterion=criterion, image_size=40, coarsest="any", max_cells=600)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    ready = ImageCutter().prepare(picture, settings)
    assert int((ready.leaves.sizes**2).sum()) == math.prod(ready.leaves.grid)
    assert ready.patches.shape == (len(ready.leaves), 3, 14, 14) and ready.patches.isfinite().all()


# Patches


def resample_leaf_by_leaf(image: torch.Tensor, boxes: list[tuple[int, ...]], patch_size: int) -> torch.Tensor:
    squares = [image[None, :, r : r + s, c : c + s] for r, c, s in (np.array(boxes) * patch_size).tolist()]
    shape = (patch_size, patch_size)
    return torch.cat([F.interpolate(square, shape, mode="bilinear", antialias=True) for square in squares])


@pytest.mark.parametrize("patch_size", [2, 3, 14])
@pytest.mark.parametrize("size", [1, 2, 4, 16])
def test_weights_are_those_of_antialiased_interpolation(size, patch_size):
    unit = torch.eye(size * patch_size)[None, None]
    expected = F.interpolate(unit, (patch_size, size * patch_size), mode="bilinear", antialias=True)[0, 0]
    np.testing.assert_allclose(patches.antialias_weights(size, patch_size), expected.numpy(), atol=1e-6)


@pytest.mark.parametrize(("product", "chunk"), [(2**18, 2**17), (1, 1), (4 * 64 * 3, 500)], ids=["", "least", "few"])
@settings(max_examples=20)
@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from(LAYOUTS), st.sampled_from([0.5, 2.0, math.inf]))
def test_rows_and_chunks_of_leaves_are_resampled_as_each_alone(product, chunk, rows, cols, layout, alpha):
    image = patchwork((rows, cols), seed=rows)
    leaves = paper_partition(image, 4, alpha=alpha, layout=layout)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patches, "SMALL_PRODUCT", product)
        patch.setattr(patches, "CHUNK", chunk)
        found = qlip.extract_patches(image, leaves, 4)
    torch.testing.assert_close(found, resample_leaf_by_leaf(image, as_tuples(leaves), 4), atol=1e-4, rtol=1e-5)


def test_leaves_of_one_row_may_start_anywhere():
    boxes = [(0, 0, 2), (0, 2, 1), (0, 3, 2), (1, 2, 1)]
    image = patchwork((2, 5))
    found = qlip.extract_patches(image, Leaves(torch.tensor(boxes), (2, 5)), 4)
    torch.testing.assert_close(found, resample_leaf_by_leaf(image, boxes, 4), atol=1e-4, rtol=1e-5)


# Pixels


def test_pixels_are_those_of_torchs_arithmetic():
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(8, 32, 3)
    mean, std = (torch.tensor(values)[:, None, None] for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    expected = torch.from_numpy(levels).permute(2, 0, 1).float().div(255).sub(mean).div(std)
    assert torch.equal(ImageCutter().to_tensor(Image.fromarray(levels)), expected)


THREADS = """
import os, numpy as np, torch
from PIL import Image
from qlip import QLIPConfig
from qlip.cutting import ImageCutter
torch.set_num_threads(4)
picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (420, 540, 3), dtype=np.uint8))
before = len(os.listdir("/proc/self/task"))
for options in ({}, {"criterion": "gradient", "coarsest": "any"}, {"geometry": "native", "noise_floor": True}):
    ImageCutter().prepare(picture, QLIPConfig(**options))
started = len(os.listdir("/proc/self/task")) - before
torch.ones(2**22).sum()  # shared out to the pool
print(started, len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_an_image_is_prepared_without_torchs_threads():
    done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "3"]
