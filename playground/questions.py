"""Questions about a scene in natural wordings, and their answers.

Only questions with one clear answer are asked: a colour by a shape that occurs once, and so on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from playground.objects import COLOURS, SHAPES, SceneObject, Size, height_and_width

if TYPE_CHECKING:
    import numpy as np

WORDINGS = {
    "colour": (
        "What colour is the {shape}?",
        "What color is the {shape}?",
        "Which colour does the {shape} have?",
        "Which color does the {shape} have?",
        "What is the colour of the {shape}?",
        "What is the color of the {shape}?",
    ),
    "shape": (
        "What shape is the {colour} object?",
        "Which shape does the {colour} object have?",
        "What is the shape of the {colour} object?",
        "What shape does the {colour} thing have?",
    ),
    "relation": (
        "Is the {first} left or right of the {second}?",
        "Is the {first} to the left or to the right of the {second}?",
        "On which side of the {second} is the {first}?",
        "Where is the {first}, left or right of the {second}?",
    ),
    "count": (
        "How many objects are there?",
        "How many objects are in the picture?",
        "How many objects are in the image?",
        "How many things can you see?",
        "What is the number of objects?",
    ),
    "existence": (
        "Is there a {name}?",
        "Is there a {name} in the picture?",
        "Is there a {name} in the image?",
        "Can you see a {name}?",
        "Does the picture show a {name}?",
    ),
    "listing": (
        "What is in the picture?",
        "What is in the image?",
        "What do you see?",
        "What can you see in the picture?",
        "Which objects are there?",
        "Describe the picture.",
    ),
}
KINDS = tuple(WORDINGS)
V_STAR = ("colour", "shape", "relation")
"""The kinds whose mean is called V*, after the benchmark that asks for them."""
RELATION_GAP = 0.08
"""Least distance between the columns of two centres, as a share of the width, to ask about left and right."""
PER_SCENE = ("colour", "colour", "shape", "shape", "relation", "relation", "count", "existence", "listing")
"""Kinds of the questions that `scene_questions` asks, in order."""
ASKED = ("colour", "shape", "relation", "relation", "count", "existence", "listing")
"""Kinds of the questions that training asks about a scene."""


@dataclass(frozen=True)
class Question:
    """A question of one of `KINDS` with its answer."""

    kind: str
    text: str
    answer: str


def scene_questions(
    objects: Sequence[SceneObject], size: int | Size, rng: np.random.Generator, kinds: Sequence[str] = PER_SCENE
) -> list[Question]:
    """Asks one question for each of `kinds` about a scene.

    Args:
        objects: the scene's objects, two or more.
        size: side of the picture in pixels, if it is a square, or (height, width).
        rng: the generator of its choices.
        kinds: of `KINDS`.
    """
    width = height_and_width(size)[1]
    return [_ask(kind, objects, width, rng) for kind in kinds]


def listing(objects: Sequence[SceneObject]) -> str:
    """Names all objects from left to right: "a red circle, a blue cross and a yellow ring"."""
    names = [f"a {item.name}" for item in sorted(objects, key=lambda item: item.centre[1])]
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def _ask(kind: str, objects: Sequence[SceneObject], width: int, rng: np.random.Generator) -> Question:
    if kind not in WORDINGS:
        raise ValueError(f"unknown kind {kind!r}; allowed: {', '.join(KINDS)}")
    wording = WORDINGS[kind][rng.integers(len(WORDINGS[kind]))]
    if kind == "colour":
        once = Counter(item.shape for item in objects)
        item = _pick([item for item in objects if once[item.shape] == 1], rng)
        return Question(kind, wording.format(shape=item.shape), item.colour)
    if kind == "shape":
        once = Counter(item.colour for item in objects)
        item = _pick([item for item in objects if once[item.colour] == 1], rng)
        return Question(kind, wording.format(colour=item.colour), item.shape)
    if kind == "relation":
        apart = RELATION_GAP * width
        pairs = [(a, b) for a in objects for b in objects if abs(a.centre[1] - b.centre[1]) > apart]
        first, second = pairs[rng.integers(len(pairs))]
        answer = "left" if first.centre[1] < second.centre[1] else "right"
        return Question(kind, wording.format(first=first.name, second=second.name), answer)
    if kind == "count":
        return Question(kind, wording, str(len(objects)))
    if kind == "existence":
        if rng.random() < 0.5:
            return Question(kind, wording.format(name=_pick(objects, rng).name), "yes")
        return Question(kind, wording.format(name=_absent_name(objects, rng)), "no")
    return Question(kind, wording, listing(objects))


def _pick(objects: Sequence[SceneObject], rng: np.random.Generator) -> SceneObject:
    return objects[rng.integers(len(objects))]


def _absent_name(objects: Sequence[SceneObject], rng: np.random.Generator) -> str:
    """Chooses a name that no object has; more often than not it shares its colour or its shape with one."""
    colours, present = list(COLOURS), {item.name for item in objects}
    while True:
        colour, shape = colours[rng.integers(len(colours))], SHAPES[rng.integers(len(SHAPES))]
        if rng.random() < 0.6:
            near = _pick(objects, rng)
            colour, shape = (near.colour, shape) if rng.random() < 0.5 else (colour, near.shape)
        if f"{colour} {shape}" not in present:
            return f"{colour} {shape}"
