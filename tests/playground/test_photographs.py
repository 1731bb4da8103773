"""Photographs as grounds: others for each split, free to use, and cropped without distortion."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import skimage.data
from PIL import Image

from playground import photographs
from playground.photographs import SPLITS, Photograph, photo_ground, read_photograph


def test_no_photograph_is_in_two_splits():
    for first, second in combinations(SPLITS.values(), 2):
        assert not {item.name for item in first} & {item.name for item in second}


@pytest.mark.parametrize(
    "photograph", [item for split in SPLITS.values() for item in split], ids=lambda item: item.name
)
def test_every_photograph_is_installed_large_and_its_licence_known(photograph):
    pixels = read_photograph(photograph)
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    assert min(pixels.shape[:2]) >= 300
    assert any(word in photograph.licence for word in ("CC0", "public domain", "no known copyright"))


def test_pixels_are_those_of_the_package():
    assert np.array_equal(read_photograph(SPLITS["training"][0]), skimage.data.astronaut())
    grey = read_photograph(Photograph("camera", ""))
    assert np.array_equal(grey[..., 0], skimage.data.camera()) and np.array_equal(grey[..., 0], grey[..., 2])


@pytest.mark.parametrize("size", [(112, 112), (56, 112), (448, 224), (600, 900)])
def test_a_ground_has_the_size_asked_for(size):
    ground = photo_ground("validation", size, np.random.default_rng(1))
    assert ground.shape == (*size, 3) and ground.dtype == np.float32
    assert ground.min() >= 0 and ground.max() <= 255


def test_a_crop_keeps_the_photographs_aspect(monkeypatch):
    disc = np.zeros((400, 600, 3), np.uint8)
    rows, cols = np.mgrid[:400, :600]
    disc[np.hypot(rows - 200, cols - 300) < 60] = 255
    monkeypatch.setattr(photographs, "read_photograph", lambda photograph: disc)
    monkeypatch.setattr(photographs, "LEAST_CROP", 1.0)
    ground = photo_ground("test", (100, 150), np.random.default_rng(0))
    box = Image.fromarray((ground[..., 0] > ground.max() / 2).astype(np.uint8)).getbbox()
    assert box[2] - box[0] == pytest.approx(box[3] - box[1], abs=1) == pytest.approx(30, abs=1)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="'holidays'.*training, validation, test"):
        photo_ground("holidays", (8, 8), np.random.default_rng(0))


def test_a_missing_package_is_named(monkeypatch):
    def fail(name):
        raise ImportError(name)

    monkeypatch.setattr(photographs.importlib, "import_module", fail)
    with pytest.raises(ValueError, match="needs scikit-image; install the extra 'bench'"):
        read_photograph(Photograph("page", ""))
