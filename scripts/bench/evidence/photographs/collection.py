"""Photographs inside installed packages whose licences are stated, and named crops of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image

from playground import photographs as samples

SAMPLES = sorted(
    [
        *(item for split in samples.SPLITS.values() for item in split),
        samples.Photograph("text", "Wikipedia, public domain"),
    ],
    key=lambda item: (item.package != "skimage", item.name),
)
"""The photographs of all splits, and one that is too little of a ground; scikit-image's first."""
LICENCES: Mapping[str, str] = {item.name: item.licence for item in SAMPLES if item.package == "skimage"}
"""Functions of `skimage.data` whose pictures are inside its wheel, with the licences that their docstrings state."""
SOURCES = {"skimage": "scikit-image", "matplotlib": "matplotlib"}
"""Names of packages, by their modules'."""
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
    found = [
        Photograph(
            item.name.removesuffix(".jpg"),
            Image.fromarray(samples.read_photograph(item)),
            SOURCES[item.package],
            item.licence,
        )
        for item in SAMPLES
    ]
    whole = {item.name: item for item in found}
    for name, (of, shares) in CROPS.items():
        item = whole[of]
        width, height = item.picture.size
        box = [round(share * side) for share, side in zip(shares, (width, height) * 2, strict=True)]
        part = item.picture.crop((box[0], box[1], box[2], box[3]))
        found.append(Photograph(name, part, item.source, item.licence, cropped=True))
    return found
