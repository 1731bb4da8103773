"""Synthetic scenes: coloured shapes, and perhaps a sign, on a background, exact by seed.

`python -m playground.scenes` writes them with questions and answers in LLaVA's formats. A scene depends only on
its spec, the seed and its own index, so any number of scenes starts with the same ones.
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
from playground.dialogue import DIALOGUE_KINDS, ask
from playground.drawing import background, coverage
from playground.objects import COLOURS, GROUNDS, SHAPES, SceneObject, Sign, Size, height_and_width
from playground.photographs import photo_ground
from playground.placement import choose_size, place_objects
from playground.presets import NAMED_PRESETS, PRESETS, SceneSpec
from playground.questions import Question, scene_questions
from playground.signs import LEAST_READABLE, choose_text, draw_plate
from qlip.files import replacing

CELL = 14
"""Side in pixels of the cells that `cell_labels` describes: the demo tower's patch size."""

SIGN_LABEL = 1 + len(COLOURS) * len(SHAPES)
"""What `cell_labels` calls a sign."""
QUESTION_FIELDS = ("question_id", "image", "text", "category")
ANSWER_FIELDS = ("question_id", "text")
"""Fields of the lines that `write_scenes` writes, in their order."""
UNREADABLE = (2, 4)
"""Least and greatest height in pixels of capitals that are too low to be read."""


@dataclass(frozen=True)
class Scene:
    """An image, uint8 `(height, width, 3)`, and what is in it."""

    image: np.ndarray
    objects: tuple[SceneObject, ...]
    sign: Sign | None = None
    ground: str = "flat"
    """Kind of the background, one of `GROUNDS`."""

    @property
    def size(self) -> Size:
        """(height, width) in pixels."""
        return self.image.shape[0], self.image.shape[1]


def scene(spec: SceneSpec, seed: int, index: int) -> Scene:
    """Draws scene number `index` of the series `seed`."""
    rng = np.random.default_rng((seed, index))
    # Signs and shapes of pictures have a generator to themselves: scenes without them stay as they were.
    more = np.random.default_rng((seed, index, 4))
    size = choose_size(spec, more)
    kind = spec.backgrounds[rng.integers(len(spec.backgrounds))]
    count = int(rng.integers(spec.objects[0], spec.objects[1] + 1))
    names = choose_names(count, rng)
    sign, plate = _make_sign(spec, size, more)
    centres, sizes, place = place_objects(count, spec, size, rng, None if sign is None else sign.box)
    image = photo_ground(spec.photos, size, rng) if kind == "photo" else background(kind, size, rng)
    objects = []
    for (colour, shape), centre, side in zip(names, centres, sizes, strict=True):
        tint = np.clip(np.array(COLOURS[colour]) + rng.uniform(-18, 18, 3), 0, 255).astype(np.float32)
        rows, cols, cover = coverage(shape, centre, side, size)
        image[rows, cols] += cover[..., None] * (tint - image[rows, cols])
        objects.append(SceneObject(colour, shape, centre, side))
    if sign is not None and plate is not None and place is not None:
        sign = replace(sign, centre=place)
        image[sign_area(sign)] = plate
    image = add_noise(np.clip(image + 0.5, 0, 255).astype(np.uint8), spec.noise, (seed, index, 3))
    return Scene(image, tuple(objects), sign, kind)


def _make_sign(spec: SceneSpec, size: Size, rng: np.random.Generator) -> tuple[Sign, np.ndarray] | tuple[None, None]:
    """Chooses and draws a sign that fits into the picture, or none; its place is not chosen yet."""
    if rng.random() >= spec.sign_share:
        return None, None
    readable = rng.random() >= spec.unreadable_share
    low, high = spec.sign_height if readable else UNREADABLE
    height = round(float(np.exp(rng.uniform(np.log(low), np.log(high)))))
    text = choose_text(rng)
    while True:
        plate = draw_plate(text, height, spec.fonts, rng)
        rows, cols = plate.pixels.shape[:2]
        if (rows <= 0.6 * size[0] and cols <= 0.8 * size[1]) or height <= min(low, LEAST_READABLE):
            return Sign(text, (0.0, 0.0), (rows, cols), height, readable, plate.edges), plate.pixels
        height = max(min(low, LEAST_READABLE), int(0.8 * height))


def sign_area(sign: Sign) -> tuple[slice, slice]:
    """Finds the rows and columns of a sign's plate."""
    top, left = (round(middle - side / 2) for middle, side in zip(sign.centre, sign.box, strict=True))
    return slice(top, top + sign.box[0]), slice(left, left + sign.box[1])


def add_noise(image: np.ndarray, strength: float, seed: tuple[int, ...]) -> np.ndarray:
    """Lays Gaussian noise of standard deviation `strength` over an image, uint8 (H, W, 3)."""
    if not strength:
        return image
    noise = np.random.default_rng(seed).normal(0, strength, image.shape)
    return np.clip(image + noise, 0, 255).round().astype(np.uint8)


def choose_names(count: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Chooses distinct (colour, shape) pairs; at least one colour and one shape occur once, for questions."""
    colours = list(COLOURS)
    while count:
        codes = rng.choice(len(colours) * len(SHAPES), count, replace=False)
        colour, shape = np.divmod(codes, len(SHAPES))
        if 1 in np.bincount(colour) and 1 in np.bincount(shape):
            return [(colours[c], SHAPES[s]) for c, s in zip(colour, shape, strict=True)]
    return []


def cell_labels(
    objects: Sequence[SceneObject],
    size: int | Size,
    cell: int = CELL,
    least: float = 4.0,
    sign: Sign | None = None,
) -> np.ndarray:
    """Names the object in each cell.

    Args:
        objects: the scene's objects.
        size: side of the image in pixels, if it is a square, or (height, width): multiples of `cell`.
        cell: side of a cell in pixels.
        least: pixels an object must cover to count.
        sign: the scene's sign.

    Returns:
        uint8 `(height / cell, width / cell)`: 0 for background, `1 + label_of(object)` of the object that covers
        most, or `SIGN_LABEL`.
    """
    height, width = height_and_width(size)
    rows, cols = height // cell, width // cell
    labels = np.zeros((rows, cols), np.uint8)
    best = np.full((rows, cols), least)
    covers = [(1 + label_of(item), coverage(item.shape, item.centre, item.size, (height, width))) for item in objects]
    if sign is not None:
        covers.append((SIGN_LABEL, (*sign_area(sign), np.ones(sign.box, np.float32))))
    for label, (over_rows, over_cols, cover) in covers:
        full = np.zeros((height, width), np.float32)
        full[over_rows, over_cols] = cover
        area = full.reshape(rows, cell, cols, cell).sum((1, 3))
        more = area > best
        labels[more] = label
        best[more] = area[more]
    return labels


def label_of(item: SceneObject) -> int:
    """Encodes the colour-shape pair as a number, 0 .. 29."""
    return list(COLOURS).index(item.colour) * len(SHAPES) + SHAPES.index(item.shape)


def write_scenes(folder: Path, spec: SceneSpec, seed: int, count: int) -> None:
    """Writes `images/*.png`, `questions.jsonl` and `answers.jsonl`, LLaVA's evaluation formats, into `folder`.

    An interruption leaves the questions and answers of an earlier run as they were.

    Raises:
        ValueError: one of the files there is not of this function.
    """
    for name, fields in (("questions.jsonl", QUESTION_FIELDS), ("answers.jsonl", ANSWER_FIELDS)):
        check_own_file(folder / name, fields)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with (
        replacing(folder / "questions.jsonl") as new_questions,
        replacing(folder / "answers.jsonl") as new_answers,
        new_questions.open("w", encoding="utf-8") as questions,
        new_answers.open("w", encoding="utf-8") as answers,
        ProcessPoolExecutor(os.cpu_count()) as pool,
    ):
        rows = pool.map(partial(_write_scene, folder, spec, seed), range(count), chunksize=16)
        for number, (asked, answered) in enumerate(_flatten(rows)):
            questions.write(json.dumps({"question_id": number} | asked) + "\n")
            answers.write(json.dumps({"question_id": number, "text": answered}) + "\n")


def check_own_file(file: Path, fields: tuple[str, ...]) -> None:
    """Checks that a file that will be replaced is absent, empty, or JSON lines of these fields alone.

    Raises:
        ValueError: it is somebody's own, for example a model's answers.
    """
    if not file.is_file():
        return
    with file.open(encoding="utf-8") as lines:
        first = lines.readline()
    try:
        is_own = not first.strip() or tuple(json.loads(first)) == fields
    except (TypeError, ValueError):
        is_own = False
    if not is_own:
        raise ValueError(f"{file} was not written by this command, which would replace it; give another --out")


def _write_scene(folder: Path, spec: SceneSpec, seed: int, index: int) -> list[tuple[dict[str, str], str]]:
    made = scene(spec, seed, index)
    name = f"{seed:06d}_{index:06d}.png"
    Image.fromarray(made.image).save(folder / "images" / name)
    return [
        ({"image": name, "text": item.text, "category": item.kind}, item.answer)
        for item in _ask_about(made, spec, np.random.default_rng((seed, index, 1)))
    ]


def _ask_about(made: Scene, spec: SceneSpec, rng: np.random.Generator) -> list[Question]:
    if not spec.needs_dialogue:
        return scene_questions(made.objects, made.size, rng)
    return [ask(kind, made.objects, made.sign, made.size, rng) for kind in DIALOGUE_KINDS]


def _flatten(rows: Iterator[list[tuple[dict[str, str], str]]]) -> Iterator[tuple[dict[str, str], str]]:
    for row in rows:
        yield from row


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="scenes", description="Write synthetic scenes with questions and answers.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--n", type=integer(), default=100, help="number of scenes")
    parser.add_argument("--seed", type=integer(0), default=0)
    parser.add_argument(
        "--preset",
        choices=NAMED_PRESETS,
        default="base",
        metavar="NAME",
        help=f"{', '.join(PRESETS)}, training, or an evaluation set such as 'validation/size 12-24' (%(default)s)",
    )
    parser.add_argument("--size", type=integer(), help="longer side of the images in pixels")
    parser.add_argument("--objects", type=integer(), nargs=2, metavar=("MIN", "MAX"), help="number of objects, 2 to 5")
    parser.add_argument("--object-size", type=real(above=True), nargs=2, metavar=("MIN", "MAX"), help="side in pixels")
    parser.add_argument("--backgrounds", nargs="+", choices=GROUNDS)
    return parse_and_run(parser, command, argv)


def command(options: argparse.Namespace) -> None:
    """Writes what the flags describe."""
    changes = {
        "size": options.size,
        "objects": options.objects and tuple(options.objects),
        "object_size": options.object_size and tuple(options.object_size),
        "backgrounds": options.backgrounds and tuple(options.backgrounds),
    }
    spec = replace(NAMED_PRESETS[options.preset], **{name: value for name, value in changes.items() if value})
    write_scenes(options.out, spec, options.seed, options.n)
    print(f"{options.n} scenes of {spec.size} px in {options.out}")


if __name__ == "__main__":
    sys.exit(main())
