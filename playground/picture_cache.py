"""Training pictures of the tower: drawn once, padded to squares as LLaVA pads them, kept in memory-mapped arrays."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image
from transformers.image_utils import OPENAI_CLIP_MEAN

from llava.image_geometry import expand2square
from playground.dataset import draw_arrays, draw_once, mirror
from playground.dialogue import full_listing
from playground.objects import Sign
from playground.presets import SceneSpec
from playground.scenes import CELL, Scene, cell_labels, scene
from playground.signs import CHARACTERS, LONGEST_TEXT

LEAST_PART = 3
"""Pixels of a character, in height and in width, that make a cell show it."""
PADDING_COLOUR = tuple(int(255 * value) for value in OPENAI_CLIP_MEAN)


@dataclass(frozen=True)
class PictureBatch:
    """Pictures with what they show: B of them, in cells of C rows and columns."""

    images: np.ndarray
    """uint8 (B, H, H, 3)."""
    labels: np.ndarray
    """uint8 (B, C, C), see `cell_labels`."""
    texts: np.ndarray
    """uint8 (B, LONGEST_TEXT), see `encode_text`."""
    characters: np.ndarray
    """uint8 (B, C, C), see `cell_characters`."""
    captions: list[str]


class PictureCache:
    """`count` scenes of one spec and seed, kept in `folder` and drawn there at first use."""

    def __init__(self, folder: Path, spec: SceneSpec, seed: int, count: int) -> None:
        self.count = count
        draw_once(folder / "pictures.json", _draw, spec, seed, count)
        self._images, self._labels, self._texts, self._characters = (
            np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("images", "labels", "texts", "characters")
        )
        self._captions = json.loads((folder / "captions.json").read_text())

    def batch(self, size: int, rng: np.random.Generator) -> PictureBatch:
        """Draws `size` pictures at random; one without a sign is mirrored with probability one half."""
        rows = rng.integers(self.count, size=size)
        captions = [self._captions[row] for row in rows]
        mirrored = (rng.random(size) < 0.5) & np.array([other is not None for _, other in captions])
        images, labels = self._images[rows], self._labels[rows]
        images[mirrored] = images[mirrored, :, ::-1]
        labels[mirrored] = labels[mirrored, :, ::-1]
        said = [pair[int(flip)] for pair, flip in zip(captions, mirrored, strict=True)]
        return PictureBatch(images, labels, self._texts[rows], self._characters[rows], said)


def encode_text(sign: Sign | None) -> np.ndarray:
    """Encodes a sign's readable characters: uint8 (LONGEST_TEXT,), 1 + index into `CHARACTERS`, 0 past the end."""
    codes = np.zeros(LONGEST_TEXT, np.uint8)
    if sign is not None and sign.readable:
        codes[: len(sign.text)] = [1 + CHARACTERS.index(character) for character in sign.text]
    return codes


def cell_characters(sign: Sign | None, side: int) -> np.ndarray:
    """Finds the character in each cell of a square picture: the one that takes most of the cell's width.

    Returns:
        uint8 (side / CELL, side / CELL), as in `encode_text`; 0 where less than `LEAST_PART` pixels of a readable
        character are in the cell, in height or in width.
    """
    grid = side // CELL
    codes = np.zeros((grid, grid), np.uint8)
    if sign is None or not sign.readable:
        return codes
    starts = np.arange(grid) * CELL

    def overlaps(low: float, high: float) -> np.ndarray:
        return np.minimum(high, starts + CELL) - np.maximum(low, starts)

    middle, left = sign.centre[0], sign.centre[1] - sign.box[1] / 2
    rows = overlaps(middle - sign.height / 2, middle + sign.height / 2) >= LEAST_PART
    widths = np.stack([overlaps(left + a, left + b) for a, b in zip(sign.edges, sign.edges[1:], strict=False)])
    cols = np.where(widths.max(0) >= LEAST_PART, encode_text(sign)[widths.argmax(0)], 0)
    codes[rows] = cols
    return codes


def pad_to_square(made: Scene) -> Scene:
    """Puts a scene in the middle of a square, as `image_aspect_ratio: pad` does."""
    height, width = made.size
    side = max(height, width)
    down, right = (side - height) // 2, (side - width) // 2
    image = np.asarray(expand2square(Image.fromarray(made.image), PADDING_COLOUR))

    def move(place: tuple[float, float]) -> tuple[float, float]:
        return place[0] + down, place[1] + right

    objects = tuple(replace(item, centre=move(item.centre)) for item in made.objects)
    sign = None if made.sign is None else replace(made.sign, centre=move(made.sign.centre))
    return Scene(image, objects, sign, made.ground)


def _draw(folder: Path, spec: SceneSpec, seed: int, count: int) -> None:
    grid = spec.size // CELL
    shapes = {
        "images": ((count, spec.size, spec.size, 3), np.uint8),
        "labels": ((count, grid, grid), np.uint8),
        "texts": ((count, LONGEST_TEXT), np.uint8),
        "characters": ((count, grid, grid), np.uint8),
    }
    rest = draw_arrays(folder, shapes, count, partial(_draw_chunk, spec, seed))
    captions: list[tuple[str, str | None]] = list(chain.from_iterable(rest))
    (folder / "captions.json").write_text(json.dumps(captions))


def _draw_chunk(spec: SceneSpec, seed: int, indices: range) -> tuple[list[np.ndarray], list[tuple[str, str | None]]]:
    """Draws pictures; their captions are each of the picture and of its mirror image, None beside a sign."""
    scenes = [pad_to_square(scene(spec, seed, index)) for index in indices]
    arrays = [
        np.stack([made.image for made in scenes]),
        np.stack([cell_labels(made.objects, made.size, sign=made.sign) for made in scenes]),
        np.stack([encode_text(made.sign) for made in scenes]),
        np.stack([cell_characters(made.sign, spec.size) for made in scenes]),
    ]
    return arrays, [_captions(made) for made in scenes]


def _captions(made: Scene) -> tuple[str, str | None]:
    caption = full_listing(made.objects, made.sign)
    if made.sign is not None:
        return caption, None
    return caption, full_listing([mirror(item, made.size[1]) for item in made.objects], None)
