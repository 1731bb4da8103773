"""Chooses where the objects and the sign of a scene are, so that nothing touches."""

from __future__ import annotations

import math

import numpy as np

from playground.objects import Size
from playground.presets import SceneSpec
from playground.questions import RELATION_GAP

LISTING_GAP = 0.04
"""Least distance between the columns of two centres, as a share of the width: keeps left-to-right order clear."""
PATIENCE = 20
"""Attempts after which objects beside a sign or in a long picture become smaller."""

Place = tuple[float, float]


def choose_size(spec: SceneSpec, rng: np.random.Generator) -> Size:
    """Chooses the (height, width) of a picture whose longer side is the spec's, its aspect drawn log-uniformly."""
    narrow, wide = spec.aspect
    if narrow == wide == 1:
        return spec.size, spec.size
    aspect = math.exp(rng.uniform(math.log(narrow), math.log(wide)))
    shorter = max(1, round(spec.size * min(aspect, 1 / aspect)))
    return (shorter, spec.size) if aspect > 1 else (spec.size, shorter)


def place_objects(
    count: int, spec: SceneSpec, size: Size, rng: np.random.Generator, plate: Size | None = None
) -> tuple[list[Place], list[float], Place | None]:
    """Chooses centres and sizes of objects that do not touch, with columns clearly apart, and the centre of a sign.

    Args:
        count: number of objects.
        spec: what the scene is drawn from.
        size: (height, width) of the picture in pixels.
        rng: the generator of its choices.
        plate: (height, width) of the sign's plate; None for a scene without a sign.

    Returns:
        Centres (row, col) and sizes of the objects, and the sign's centre.
    """
    low, high = np.log(spec.object_size)
    high = min(high, math.log(min(size) / 2))
    attempt = 0
    while True:
        attempt += 1
        shrunk = max(low, high - 0.05 * max(0, attempt - PATIENCE)) if plate or size[0] != size[1] else high
        sizes = np.exp(rng.uniform(min(low, shrunk), shrunk, count))
        sign = None if plate is None else _place_plate(plate, size, rng)
        centres = _scatter(sizes, size, rng, sign, plate)
        if centres is None:
            continue
        cols = np.sort(centres[:, 1])
        far_apart = count < 2 or cols[-1] - cols[0] > RELATION_GAP * size[1]
        if far_apart and (count < 2 or np.diff(cols).min() > LISTING_GAP * size[1]):
            return [(float(row), float(col)) for row, col in centres], [float(item) for item in sizes], sign


def _place_plate(plate: Size, size: Size, rng: np.random.Generator) -> Place:
    """Chooses the centre of a plate inside the picture, at whole pixels."""
    top, left = (int(rng.integers(max(1, side - own + 1))) for side, own in zip(size, plate, strict=True))
    return top + plate[0] / 2, left + plate[1] / 2


def _scatter(
    sizes: np.ndarray, canvas: Size, rng: np.random.Generator, sign: Place | None, plate: Size | None
) -> np.ndarray | None:
    """Draws centres `(n, 2)` whose boxes lie inside and 2 pixels apart, the largest placed first; None if stuck."""
    centres = np.zeros((len(sizes), 2))
    placed: list[int] = []
    for i in np.argsort(-sizes):
        for _ in range(30):
            centre = rng.uniform(sizes[i] / 2 + 1, np.array(canvas) - sizes[i] / 2 - 1)
            if sign is not None and plate is not None and _touches(centre, sizes[i], sign, plate):
                continue
            if all(np.abs(centre - centres[j]).max() > (sizes[i] + sizes[j]) / 2 + 2 for j in placed):
                break
        else:
            return None
        centres[i] = centre
        placed.append(i)
    return centres


def _touches(centre: np.ndarray, size: float, sign: Place, plate: Size) -> bool:
    """Whether an object's box comes within 2 pixels of the plate."""
    apart = np.abs(centre - np.array(sign)) - (size + np.array(plate)) / 2
    return bool(apart.max() <= 2)
