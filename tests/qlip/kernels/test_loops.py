"""Compiled loops compute what numpy and torch do, and are used only where numba can be."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import numba
import numpy as np
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import qlip
from qlip import Leaves, QLIPConfig, kernels
from qlip.cutting import ImageCutter
from qlip.images.resizing import BicubicResizer
from qlip.patches import antialias_weights
from qlip.scores import edges
from tests.qlip.kernels.images import noise
from tests.qlip.samples import CRITERIA, LAYOUTS, paper_partition, patchwork

# What they compute


@settings(max_examples=30)
@given(st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9), st.integers(2, 6))
def test_a_summary_of_edges_is_numpys(channels, rows, cols, patch_size):
    image = noise(channels, rows * patch_size, cols * patch_size, seed=rows)
    expected = edges._summarise_gradient(image, 0, image.shape[1], patch_size)
    summary, is_finite = kernels.load_loops().summarise_gradient(image, patch_size)
    assert is_finite and np.array_equal(summary, expected)


@pytest.mark.parametrize(("size", "patch_size"), [(2, 14), (4, 3), (8, 4), (2, 2)])
def test_leaves_are_resampled_as_torch_interpolates_with_antialiasing(loops, size, patch_size):
    places = [(0, 0), (1, 3), (7, 2)]  # at two corners, and anywhere
    boxes, chosen = np.array([(*place, size) for place in places]), np.array([0, 2])
    image, side = noise(2, (7 + size) * patch_size, (3 + size) * patch_size), size * patch_size
    patches = np.full((3, 2, patch_size, patch_size), np.nan, np.float32)
    loops.resample(image, boxes, chosen, size, antialias_weights(size, patch_size), patches)
    for leaf in chosen:
        top, left = np.array(places[leaf]) * patch_size
        pixels = torch.from_numpy(image[None, :, top : top + side, left : left + side])
        expected = F.interpolate(pixels, (patch_size, patch_size), mode="bilinear", antialias=True)[0]
        np.testing.assert_allclose(patches[leaf], expected.numpy(), atol=2e-6)
    assert np.isnan(patches[1]).all()  # nobody chose it


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6)), min_size=1, max_size=12), st.sampled_from([2, 4]))
def test_leaves_that_follow_each_other_in_a_row_are_cut_as_each_alone(places, size):
    """In any order, and the last one at the image's border."""
    boxes = np.array([(size * row, size * col, size) for row, col in places])
    image, loops = noise(2, 3 * size * 4, 7 * size * 4, seed=len(places)), kernels.load_loops()
    together, alone = (np.full((len(boxes), 2, 4, 4), np.nan, np.float32) for _ in range(2))
    weights = antialias_weights(size, 4)
    loops.resample(image, boxes, np.arange(len(boxes)), size, weights, together)
    for leaf in range(len(boxes)):
        loops.resample(image, boxes, np.array([leaf]), size, weights, alone)
    assert np.array_equal(together, alone)


@settings(max_examples=60)
@given(
    st.tuples(st.integers(1, 200), st.integers(1, 70)) | st.tuples(st.integers(1, 2), st.integers(90, 310)),
    st.tuples(st.integers(1, 100), st.integers(1, 100)),
    st.tuples(*[st.floats(0, 1)] * 4),
)
def test_an_image_is_resized_as_pillow_does_to_the_bit(original, size, corners):
    """Enlarged and shrunk, strips as well, whole and in part, with borders between pixels."""
    (width, height), (left, right), (top, bottom) = original, sorted(corners[:2]), sorted(corners[2:])
    image = Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))
    for box in [None, (left * width, top * height, right * width, bottom * height)]:
        expected = image.resize(size, Image.Resampling.BICUBIC, box=box)
        assert np.array_equal(BicubicResizer(image).resize(*size, box), np.asarray(expected))


# Where they are used


def test_a_photograph_is_prepared_alike():
    photograph = Image.fromarray(skimage.data.astronaut()).resize((700, 433))
    settings_ = QLIPConfig(max_tokens=200)
    with pytest.MonkeyPatch.context() as patch:
        by_numpy(patch)
        expected = ImageCutter().prepare(photograph, settings_)
    cut = ImageCutter().prepare(photograph, settings_)
    assert torch.equal(cut.leaves.boxes, expected.leaves.boxes) and len(set(cut.leaves.sizes.tolist())) > 1
    assert torch.equal(cut.patches, expected.patches)


def by_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "load_loops", lambda: None)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_leaves_are_the_same_and_patches_to_rounding(monkeypatch, criterion, layout):
    image = patchwork((17, 22), 4)
    options = {"criterion": criterion, "layout": layout, "structure_size": 5, "noise_floor": True, "max_tokens": 200}
    leaves = paper_partition(image, 4, **options)
    patches = qlip.extract_patches(image, leaves, 4)
    by_numpy(monkeypatch)
    expected = paper_partition(image, 4, **options)
    assert torch.equal(leaves.boxes, expected.boxes) and len(set(leaves.sizes.tolist())) > 1
    torch.testing.assert_close(patches, qlip.extract_patches(image, expected, 4), atol=1e-5, rtol=1e-6)


def test_views_of_any_strides_are_cut_alike():
    image = patchwork((12, 12))
    views = image.permute(1, 2, 0).contiguous().permute(2, 0, 1), image.flip(0).flip(0), image.repeat(1, 1, 2)[..., :48]
    for criterion in ("gradient", "structure"):
        leaves = [paper_partition(view, 4, alpha=1.5, criterion=criterion, structure_size=5) for view in views]
        assert all(torch.equal(own.boxes, leaves[0].boxes) for own in leaves)
        patches = [qlip.extract_patches(view, leaves[0], 4) for view in views]
        assert all(torch.equal(own, patches[0]) for own in patches)


OUTSIDE = [(7, 0, 2), (0, 7, 2), (-1, 0, 2), (0, -1, 1), (8, 0, 1), (2**63 - 1, 0, 2), (0, 2**63 - 2, 4), (0, 0, 2**62)]


@pytest.mark.parametrize("box", [*OUTSIDE, (0, 0, 0), (0, 0, -1)], ids=str)
def test_no_leaf_is_read_from_beyond_the_image(monkeypatch, box):
    image, leaves = patchwork((8, 8)), Leaves(torch.tensor([(0, 0, 1), box]), (8, 8))
    with pytest.raises(ValueError, match="lies outside of the image's 8 x 8 cells"):
        qlip.extract_patches(image, leaves, 4)
    by_numpy(monkeypatch)
    with pytest.raises(ValueError, match="lies outside of the image's 8 x 8 cells"):
        qlip.extract_patches(image, leaves, 4)


@pytest.mark.parametrize("shape", [(1,), (2,), (), (1, 3)], ids=str)
def test_noise_of_other_channels_than_the_images_is_refused(shape):
    with pytest.raises(ValueError, match="an image of 3 channels has one of each"):
        paper_partition(patchwork((8, 8)), 4, criterion="structure", noise_floor=True, noise=torch.zeros(shape))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
@pytest.mark.parametrize("criterion", ["gradient", "structure", "objects"])
def test_values_that_are_not_finite_split_the_same_blocks(monkeypatch, criterion, value):
    image = patchwork((12, 12))
    image[0, 20, 21], image[1, 20, 22] = value, -value
    options = {"alpha": 1.5, "criterion": criterion, "structure_size": 5}
    leaves = paper_partition(image, 4, **options)
    by_numpy(monkeypatch)
    assert torch.equal(leaves.boxes, paper_partition(image, 4, **options).boxes)


FORKED = """
import os, threading
from numba.core.compiler_lock import global_compiler_lock
from qlip import kernels
kernels.load_loops()
held = threading.Event()
def compile_for_long():
    with global_compiler_lock:
        held.set()
        threading.Event().wait(0.5)
threading.Thread(target=compile_for_long).start()
held.wait()
child = os.fork()
if not child:
    with global_compiler_lock:
        os._exit(0)
print(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_that_is_forked_while_a_thread_compiles_can_compile():
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "0"}
    command = [sys.executable, "-c", FORKED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["0"]


@pytest.mark.parametrize("other", [np.zeros(3), np.zeros(3, np.float16), torch.zeros(3), [0.0]], ids=type)
def test_they_take_arrays_of_float32_alone(other):
    assert kernels.find_loops(np.zeros(3, np.float32)) is not None
    assert kernels.find_loops(other) is None


def test_without_a_folder_to_write_to_it_is_compiled_in_memory(monkeypatch, loops):
    def refuse(function, **options):
        if options.pop("cache", False):
            raise RuntimeError("cannot cache function: no locator available")
        return SimpleNamespace(function=function, options=options)

    monkeypatch.setattr(numba, "njit", refuse)
    assert loops.compile_loop(abs).options == {"nogil": True}


# Where numba can't be used


@pytest.fixture
def fresh() -> Iterator[None]:
    kernels.load_loops.cache_clear()
    yield
    kernels.load_loops.cache_clear()


def test_without_numba_numpy_does_it_without_a_word(monkeypatch, caplog, fresh):
    monkeypatch.setitem(sys.modules, "numba", None)
    assert kernels.load_loops() is None and not caplog.records


def test_a_numba_that_refuses_this_numpy_is_told_once(monkeypatch, caplog, fresh):
    class Refusing:
        def find_spec(self, name, path=None, target=None):
            if name == "numba":
                raise ImportError("Numba needs NumPy 2.2 or less. Got NumPy 2.4.")

    monkeypatch.delitem(sys.modules, "numba")
    monkeypatch.setattr(sys, "meta_path", [Refusing(), *sys.meta_path])
    assert kernels.load_loops() is None and kernels.load_loops() is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "Numba needs NumPy 2.2 or less" in caplog.text


def test_numbas_own_switch_turns_them_off(monkeypatch, fresh):
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    assert kernels.load_loops() is None
