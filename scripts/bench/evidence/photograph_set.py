"""Photographs inside installed packages whose licences are stated, and named crops of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import skimage.data
from PIL import Image

LICENCES: Mapping[str, str] = {
    "astronaut": "public domain (NASA)",
    "brick": "CC0 (CC0Textures)",
    "camera": "CC0 (Lav Varshney)",
    "cell": "CC0 (Paul Müller)",
    "chelsea": "CC0 (Stéfan van der Walt)",
    "clock": "public domain (Stéfan van der Walt)",
    "coffee": "CC0 (Rachel Michetti)",
    "coins": "no known copyright restrictions (Brooklyn Museum)",
    "grass": "CC0 (linolafett)",
    "gravel": "CC0 (CC0Textures)",
    "hubble_deep_field": "public domain (NASA)",
    "immunohistochemistry": "no known copyright restrictions",
    "retina": "CC0 (Mikael Häggström)",
    "rocket": "public domain (SpaceX)",
    "text": "public domain (Wikipedia)",
}
"""Functions of `skimage.data` whose pictures are inside its wheel, with the licences that their docstrings state."""
CROPS: Mapping[str, tuple[str, tuple[float, float, float, float]]] = {
    "astronaut, upper half": ("astronaut", (0, 0, 1, 0.5)),
    "retina, middle quarter": ("retina", (0.25, 0.25, 0.75, 0.75)),
    "rocket, left half": ("rocket", (0, 0, 0.5, 1)),
    "hubble_deep_field, upper left quarter": ("hubble_deep_field", (0, 0, 0.5, 0.5)),
}
"""Name -> photograph and (left, top, right, bottom) as shares of its sides: other contents at other aspects."""


@dataclass(frozen=True)
class Photograph:
    """A picture to count the tokens of."""

    name: str
    picture: Image.Image
    """RGB."""
    source: str
    licence: str
    cropped: bool = False
    """Whether it is a part of another one."""


def load_photographs() -> list[Photograph]:
    """Reads all photographs, then their crops."""
    found = []
    for name, licence in LICENCES.items():
        pixels = getattr(skimage.data, name)()
        found.append(Photograph(name, Image.fromarray(pixels).convert("RGB"), "scikit-image", licence))
    with Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg") as picture:
        hopper = picture.convert("RGB")
    found.append(Photograph("grace_hopper", hopper, "matplotlib", "public domain (US Navy)"))
    whole = {item.name: item for item in found}
    for name, (of, shares) in CROPS.items():
        item = whole[of]
        width, height = item.picture.size
        box = [round(share * side) for share, side in zip(shares, (width, height) * 2, strict=True)]
        part = item.picture.crop((box[0], box[1], box[2], box[3]))
        found.append(Photograph(name, part, item.source, item.licence, cropped=True))
    return found
