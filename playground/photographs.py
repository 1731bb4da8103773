"""Crops of photographs as grounds, from sample pictures that ship inside packages; different ones for each split.

All are in the wheels of scikit-image and matplotlib, so that nothing is downloaded, and free to use: in the public
domain, under CC0, or without known copyright restrictions, as their packages state. scikit-image is needed for them: it
comes with the extra `bench`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from playground.objects import Size


@dataclass(frozen=True)
class Photograph:
    """A sample picture of a package."""

    name: str
    """Name of the function of `skimage.data`, or of matplotlib's sample file."""
    licence: str
    package: str = "skimage"


SPLITS: dict[str, tuple[Photograph, ...]] = {
    "training": (
        Photograph("astronaut", "NASA, public domain"),
        Photograph("coffee", "CC0 (Rachel Michetti)"),
        Photograph("hubble_deep_field", "NASA, public domain"),
        Photograph("retina", "CC0 (Mikael Häggström)"),
        Photograph("immunohistochemistry", "no known copyright restrictions (CMU-1)"),
        Photograph("camera", "CC0 (Lav Varshney)"),
        Photograph("brick", "CC0 (CC0Textures)"),
        Photograph("grass", "CC0 (DeviantArt, linolafett)"),
    ),
    "validation": (
        Photograph("chelsea", "CC0 (Stéfan van der Walt)"),
        Photograph("clock", "Stéfan van der Walt, public domain"),
        Photograph("gravel", "CC0 (CC0Textures)"),
    ),
    "test": (
        Photograph("rocket", "SpaceX, public domain"),
        Photograph("grace_hopper.jpg", "US Navy, public domain", "matplotlib"),
        Photograph("coins", "no known copyright restrictions (Brooklyn Museum)"),
        Photograph("cell", "CC0 (Paul Müller)"),
    ),
}
"""The photographs of each split."""

LEAST_CROP = 0.35
"""Least share of a photograph's sides that a crop takes."""


def photo_ground(split: str, size: Size, rng: np.random.Generator) -> np.ndarray:
    """Crops a photograph of a split at random and resizes it, half of the time mirrored.

    Args:
        split: one of `SPLITS`.
        size: (height, width) of the ground in pixels.
        rng: the generator of its choices.

    Returns:
        float32 (height, width, 3) in 0..255.

    Raises:
        ValueError: if there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r} of photographs; allowed: {', '.join(SPLITS)}")
    photographs = SPLITS[split]
    pixels = read_photograph(photographs[rng.integers(len(photographs))])
    height, width = size
    largest = min(pixels.shape[0] / height, pixels.shape[1] / width)  # photograph's pixels to one of the ground
    scale = largest * rng.uniform(LEAST_CROP, 1)
    rows, cols = (max(1, int(side * scale)) for side in size)
    top, left = (int(rng.integers(have - want + 1)) for have, want in zip(pixels.shape, (rows, cols), strict=False))
    crop = Image.fromarray(pixels[top : top + rows, left : left + cols])
    resized = crop.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=1.5)
    ground = np.asarray(resized, dtype=np.float32)
    ground = ground[:, ::-1] if rng.random() < 0.5 else ground
    return np.ascontiguousarray(ground * np.float32(rng.uniform(0.75, 1.0)))


@cache
def read_photograph(photograph: Photograph) -> np.ndarray:
    """Reads a photograph: uint8 (height, width, 3); a grey one has three equal channels.

    Raises:
        ValueError: if its package is not installed.
    """
    try:
        package = importlib.import_module("skimage.data" if photograph.package == "skimage" else photograph.package)
    except ImportError:
        raise ValueError(
            f"the photograph {photograph.name} needs scikit-image; install the extra 'bench', or choose grounds"
            " without 'photo'"
        ) from None
    if photograph.package == "skimage":
        pixels = np.asarray(getattr(package, photograph.name)())
    else:
        with Image.open(Path(package.get_data_path()) / "sample_data" / photograph.name) as picture:
            pixels = np.asarray(picture.convert("RGB"))
    pixels = np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels[..., :3]
    return np.ascontiguousarray(pixels, dtype=np.uint8)
