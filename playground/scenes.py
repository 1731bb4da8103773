"""Synthetic scenes: two to five coloured shapes on a background, exact by seed.

`python -m playground.scenes` writes them with questions and answers in LLaVA's formats. A scene depends only on
its spec, the seed and its own index, so any number of scenes starts with the same ones. Knows no models.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from llava.command import OneLineParser, integer, parse_and_run, real
from playground.drawing import background, coverage
from playground.objects import BACKGROUNDS, COLOURS, SHAPES, SceneObject
from playground.presets import PRESETS, SceneSpec
from playground.questions import RELATION_GAP, scene_questions

CELL = 14
"""Side in pixels of the cells that `cell_labels` describes: the demo tower's patch size."""

LISTING_GAP = 0.04
"""Least distance between the columns of two centres, as a share of the image: keeps left-to-right order clear."""


@dataclass(frozen=True)
class Scene:
    """An image, uint8 `(size, size, 3)`, and the objects in it."""

    image: np.ndarray
    objects: tuple[SceneObject, ...]


def scene(spec: SceneSpec, seed: int, index: int) -> Scene:
    """Draws scene number `index` of the series `seed`."""
    rng = np.random.default_rng((seed, index))
    kind = spec.backgrounds[rng.integers(len(spec.backgrounds))]
    count = int(rng.integers(spec.objects[0], spec.objects[1] + 1))
    names = _choose_names(count, rng)
    centres, sizes = _place(count, spec, rng)
    image = background(kind, spec.size, rng)
    objects = []
    for (colour, shape), centre, size in zip(names, centres, sizes, strict=True):
        tint = np.clip(np.array(COLOURS[colour]) + rng.uniform(-18, 18, 3), 0, 255).astype(np.float32)
        rows, cols, cover = coverage(shape, centre, size, spec.size)
        image[rows, cols] += cover[..., None] * (tint - image[rows, cols])
        objects.append(SceneObject(colour, shape, centre, size))
    return Scene(np.clip(image + 0.5, 0, 255).astype(np.uint8), tuple(objects))


def _choose_names(count: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Chooses distinct (colour, shape) pairs; at least one colour and one shape occur once, for questions."""
    colours = list(COLOURS)
    while True:
        codes = rng.choice(len(colours) * len(SHAPES), count, replace=False)
        colour, shape = np.divmod(codes, len(SHAPES))
        if 1 in np.bincount(colour) and 1 in np.bincount(shape):
            return [(colours[c], SHAPES[s]) for c, s in zip(colour, shape, strict=True)]


def _place(count: int, spec: SceneSpec, rng: np.random.Generator) -> tuple[list[tuple[float, float]], list[float]]:
    """Chooses centres and sizes of objects that do not touch, with columns clearly apart."""
    low, high = np.log(spec.object_size)
    while True:
        sizes = np.exp(rng.uniform(low, high, count))
        centres = _scatter(sizes, spec.size, rng)
        if centres is None:
            continue
        cols = np.sort(centres[:, 1])
        if np.diff(cols).min() > LISTING_GAP * spec.size and cols[-1] - cols[0] > RELATION_GAP * spec.size:
            return [(float(row), float(col)) for row, col in centres], [float(size) for size in sizes]


def _scatter(sizes: np.ndarray, canvas: int, rng: np.random.Generator) -> np.ndarray | None:
    """Random centres `(n, 2)` whose boxes lie inside and 2 pixels apart, the largest placed first; None if stuck."""
    centres = np.zeros((len(sizes), 2))
    placed: list[int] = []
    for i in np.argsort(-sizes):
        for _ in range(30):
            centre = rng.uniform(sizes[i] / 2 + 1, canvas - sizes[i] / 2 - 1, 2)
            if all(np.abs(centre - centres[j]).max() > (sizes[i] + sizes[j]) / 2 + 2 for j in placed):
                break
        else:
            return None
        centres[i] = centre
        placed.append(i)
    return centres


def cell_labels(objects: Sequence[SceneObject], size: int, cell: int = CELL, least: float = 4.0) -> np.ndarray:
    """Names the object in each cell.

    Args:
        objects: the scene's objects.
        size: side of the image in pixels, a multiple of `cell`.
        cell: side of a cell in pixels.
        least: pixels an object must cover to count.

    Returns:
        uint8 `(size / cell, size / cell)`: 0 for background, else `1 + label_of(object)` of what covers most.
    """
    grid = size // cell
    labels = np.zeros((grid, grid), np.uint8)
    best = np.full((grid, grid), least)
    for item in objects:
        rows, cols, cover = coverage(item.shape, item.centre, item.size, size)
        full = np.zeros((size, size), np.float32)
        full[rows, cols] = cover
        area = full.reshape(grid, cell, grid, cell).sum((1, 3))
        more = area > best
        labels[more] = 1 + label_of(item)
        best[more] = area[more]
    return labels


def label_of(item: SceneObject) -> int:
    """Encodes the colour-shape pair as a number, 0 .. 29."""
    return list(COLOURS).index(item.colour) * len(SHAPES) + SHAPES.index(item.shape)


def write_scenes(folder: Path, spec: SceneSpec, seed: int, count: int) -> None:
    """Writes `images/*.png`, `questions.jsonl` and `answers.jsonl`, LLaVA's evaluation formats, into `folder`."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with (
        (folder / "questions.jsonl").open("w", encoding="utf-8") as questions,
        (folder / "answers.jsonl").open("w", encoding="utf-8") as answers,
        ProcessPoolExecutor(os.cpu_count()) as pool,
    ):
        rows = pool.map(partial(_write_scene, folder, spec, seed), range(count), chunksize=16)
        for number, (asked, answered) in enumerate(_flatten(rows)):
            questions.write(json.dumps({"question_id": number} | asked) + "\n")
            answers.write(json.dumps({"question_id": number, "text": answered}) + "\n")


def _write_scene(folder: Path, spec: SceneSpec, seed: int, index: int) -> list[tuple[dict[str, str], str]]:
    made = scene(spec, seed, index)
    name = f"{seed:06d}_{index:06d}.png"
    Image.fromarray(made.image).save(folder / "images" / name)
    return [
        ({"image": name, "text": item.text, "category": item.kind}, item.answer)
        for item in scene_questions(made.objects, spec.size, np.random.default_rng((seed, index, 1)))
    ]


def _flatten(rows: Iterator[list[tuple[dict[str, str], str]]]) -> Iterator[tuple[dict[str, str], str]]:
    for row in rows:
        yield from row


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="scenes", description="Write synthetic scenes with questions and answers.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--n", type=integer(), default=100, help="number of scenes")
    parser.add_argument("--seed", type=integer(0), default=0)
    parser.add_argument("--preset", choices=PRESETS, default="base")
    parser.add_argument("--size", type=integer(), help="side of the images in pixels")
    parser.add_argument("--objects", type=integer(), nargs=2, metavar=("MIN", "MAX"), help="number of objects, 2 to 5")
    parser.add_argument("--object-size", type=real(above=True), nargs=2, metavar=("MIN", "MAX"), help="side in pixels")
    parser.add_argument("--backgrounds", nargs="+", choices=BACKGROUNDS)
    return parse_and_run(parser, command, argv)


def command(options: argparse.Namespace) -> None:
    """Writes what the flags describe."""
    changes = {
        "size": options.size,
        "objects": options.objects and tuple(options.objects),
        "object_size": options.object_size and tuple(options.object_size),
        "backgrounds": options.backgrounds and tuple(options.backgrounds),
    }
    spec = replace(PRESETS[options.preset], **{name: value for name, value in changes.items() if value})
    write_scenes(options.out, spec, options.seed, options.n)
    print(f"{options.n} scenes of {spec.size} px in {options.out}")


if __name__ == "__main__":
    sys.exit(main())
