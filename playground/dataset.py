"""The training scenes: drawn once into memory-mapped arrays, read back as batches.

Works with arrays and objects, not with tokens or models.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from playground.objects import COLOURS, SHAPES, SceneObject
from playground.scenes import CELL, SceneSpec, cell_labels, label_of, scene

logger = logging.getLogger(__name__)

MAX_OBJECTS = 5
CHUNK = 500

T = TypeVar("T")


@dataclass(frozen=True)
class SceneBatch:
    """Scenes stacked: images uint8 (B, H, W, 3), cell labels uint8 (B, rows, cols), objects per scene."""

    images: np.ndarray
    labels: np.ndarray
    objects: list[list[SceneObject]]


def draw_once(
    done: Path, draw: Callable[[Path, SceneSpec, int, int], None], spec: SceneSpec, seed: int, count: int
) -> None:
    """Draws `count` scenes into the folder of `done`, unless that file says that they are there."""
    key = {"spec": asdict(spec), "seed": seed, "count": count}
    if not done.exists() or json.loads(done.read_text()) != json.loads(json.dumps(key)):
        done.unlink(missing_ok=True)
        draw(done.parent, spec, seed, count)
        done.write_text(json.dumps(key))


def draw_arrays(
    folder: Path,
    shapes: Mapping[str, tuple[tuple[int, ...], npt.DTypeLike]],
    count: int,
    draw: Callable[[range], tuple[Sequence[np.ndarray], T]],
) -> list[T]:
    """Draws scenes into memory-mapped .npy files, a chunk at a time in all of the machine's cores.

    Args:
        folder: of the files.
        shapes: name of each file -> its array's shape, (count, ...), and dtype.
        count: scenes.
        draw: draws the scenes of some indices: their part of each array, and what else is known of them.

    Returns:
        What else is known, of each chunk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays = [
        np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", shape=shape, dtype=dtype)
        for name, (shape, dtype) in shapes.items()
    ]
    logger.info("drawing %d scenes", count)
    chunks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    rest = []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        drawn = tqdm(pool.map(draw, chunks), "scenes", len(chunks), mininterval=5, delay=2)
        for indices, (parts, more) in zip(chunks, drawn, strict=True):
            for array, part in zip(arrays, parts, strict=True):
                array[indices.start : indices.stop] = part
            rest.append(more)
    for array in arrays:
        array.flush()
    return rest


class SceneCache:
    """`count` scenes of one spec and seed, kept in `folder` as .npy files and drawn there at first use."""

    def __init__(self, folder: Path, spec: SceneSpec, seed: int, count: int) -> None:
        self.spec = spec
        self.count = count
        draw_once(folder / "scenes.json", _draw, spec, seed, count)
        self._images, self._labels, self._objects = (
            np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("images", "labels", "objects")
        )

    def batch(self, size: int, rng: np.random.Generator) -> SceneBatch:
        """Draws `size` scenes at random; each is mirrored with probability one half."""
        rows = rng.integers(self.count, size=size)
        mirrored = rng.random(size) < 0.5
        images, labels = self._images[rows], self._labels[rows]
        images[mirrored] = images[mirrored, :, ::-1]
        labels[mirrored] = labels[mirrored, :, ::-1]
        objects = [
            [mirror(item, self.spec.size) if flip else item for item in _decode(table)]
            for table, flip in zip(self._objects[rows], mirrored, strict=True)
        ]
        return SceneBatch(images, labels, objects)


def _draw(folder: Path, spec: SceneSpec, seed: int, count: int) -> None:
    grid = spec.size // CELL
    shapes = {
        "images": ((count, spec.size, spec.size, 3), np.uint8),
        "labels": ((count, grid, grid), np.uint8),
        "objects": ((count, MAX_OBJECTS, 4), np.float32),
    }
    draw_arrays(folder, shapes, count, partial(_draw_chunk, spec, seed))


def _draw_chunk(spec: SceneSpec, seed: int, indices: range) -> tuple[list[np.ndarray], None]:
    scenes = [scene(spec, seed, index) for index in indices]
    arrays = [
        np.stack([made.image for made in scenes]),
        np.stack([cell_labels(made.objects, spec.size) for made in scenes]),
        np.stack([_encode(made.objects) for made in scenes]),
    ]
    return arrays, None


def _encode(objects: Sequence[SceneObject]) -> np.ndarray:
    """Encodes objects as float32 rows (label, row, col, size); unused rows have label -1."""
    table = np.full((MAX_OBJECTS, 4), -1, np.float32)
    for row, item in zip(table, objects, strict=False):
        row[:] = label_of(item), *item.centre, item.size
    return table


def _decode(table: np.ndarray) -> list[SceneObject]:
    colours = list(COLOURS)
    return [
        SceneObject(colours[int(label) // len(SHAPES)], SHAPES[int(label) % len(SHAPES)], (row, col), size)
        for label, row, col, size in table.tolist()
        if label >= 0
    ]


def mirror(item: SceneObject, width: int) -> SceneObject:
    """Mirrors an object in a picture of some width, left to right."""
    row, col = item.centre
    return replace(item, centre=(row, width - col))
