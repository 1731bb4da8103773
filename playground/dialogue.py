"""Questions about scenes with signs, without objects, or without one clear answer; conversations of several turns.

`scene_questions` asks what has one answer only. Here a question may also be about a sign, about what is not there
("none"), or about what the picture does not decide ("I can't tell"): one of two circles, or a text that is too small.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from playground.objects import COLOURS, SHAPES, SceneObject, Sign, Size, height_and_width
from playground.questions import RELATION_GAP, WORDINGS, Question, scene_questions

if TYPE_CHECKING:
    import numpy as np

SIGN_WORDINGS = (
    "What does the sign say?",
    "What is written on the sign?",
    "Which word or number is on the sign?",
    "What can you read on the sign?",
    "Read the sign.",
)
NONE, UNKNOWN, NOTHING = "none", "I can't tell", "nothing"
"""Answers about what is not there, about what cannot be said, and the listing of an empty scene."""
DIALOGUE_KINDS = (*WORDINGS, "sign")
ASKED_ONCE = ("count", "listing", "sign")
"""Kinds that have one answer for a scene, so that a conversation asks for it once."""
UNCLEAR_SHARE = 0.12
"""Share of the questions about one object that have no clear answer, where the scene allows it."""
TURNS = (2, 4)
"""Least and greatest number of turns of a conversation."""


def ask(
    kind: str, objects: Sequence[SceneObject], sign: Sign | None, size: int | Size, rng: np.random.Generator
) -> Question:
    """Asks one question of one of `DIALOGUE_KINDS` about any scene.

    Args:
        kind: what to ask about.
        objects: the scene's objects, none to five.
        sign: the scene's sign.
        size: side of the picture in pixels, if it is a square, or (height, width).
        rng: the generator of its choices.

    Raises:
        ValueError: if there is no such kind.
    """
    if kind == "sign":
        return Question(kind, SIGN_WORDINGS[rng.integers(len(SIGN_WORDINGS))], read_sign(sign))
    if kind not in WORDINGS:
        raise ValueError(f"unknown kind {kind!r}; allowed: {', '.join(DIALOGUE_KINDS)}")
    wording = WORDINGS[kind][rng.integers(len(WORDINGS[kind]))]
    if kind == "listing":
        return Question(kind, wording, full_listing(objects, sign))
    if kind == "count":
        return Question(kind, wording, str(len(objects)) if objects else NONE)
    if kind in ("colour", "shape"):
        return _ask_one(kind, wording, objects, rng)
    if kind == "existence":
        if objects:
            return scene_questions(objects, size, rng, [kind])[0]
        return Question(kind, wording.format(name=_any_name(rng)), "no")
    return _ask_relation(wording, objects, height_and_width(size)[1], rng)


def read_sign(sign: Sign | None) -> str:
    """Reads a sign: the answer to what it says."""
    if sign is None:
        return NONE
    return sign.text if sign.readable else UNKNOWN


def full_listing(objects: Sequence[SceneObject], sign: Sign | None) -> str:
    """Names all objects and the sign from left to right: "a red circle and a sign that says stop"."""
    items = [(item.centre[1], f"a {item.name}") for item in objects]
    if sign is not None:
        items.append((sign.centre[1], f"a sign that says {sign.text}" if sign.readable else "a sign"))
    names = [name for _, name in sorted(items)]
    if not names:
        return NOTHING
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def choose_kinds(sign: Sign | None, rng: np.random.Generator, turns: tuple[int, int] = TURNS) -> list[str]:
    """Chooses the kinds of a conversation's turns, any order; a sign is asked about more often where there is one."""
    weights = {kind: 1.0 for kind in DIALOGUE_KINDS} | {"relation": 1.5, "sign": 0.25 if sign is None else 2.5}
    shares = [weight / sum(weights.values()) for weight in weights.values()]
    count, chosen = int(rng.integers(turns[0], turns[1] + 1)), list[str]()
    while len(chosen) < count:
        kind = list(weights)[rng.choice(len(weights), p=shares)]
        if kind not in ASKED_ONCE or kind not in chosen:
            chosen.append(kind)
    return chosen


def _ask_one(kind: str, wording: str, objects: Sequence[SceneObject], rng: np.random.Generator) -> Question:
    """Asks for the colour of a shape, or for the shape of a colour."""
    known = "shape" if kind == "colour" else "colour"
    values = list(SHAPES if known == "shape" else COLOURS)
    counts = Counter(getattr(item, known) for item in objects)
    by_count = {
        1: [value for value in values if counts[value] == 1],
        2: [value for value in values if counts[value] > 1],
        0: [value for value in values if counts[value] == 0],
    }
    lot = rng.random()
    wanted = 0 if lot < UNCLEAR_SHARE else 2 if lot < 2 * UNCLEAR_SHARE else 1
    choices = by_count[wanted] or by_count[1] or by_count[0]
    value = choices[rng.integers(len(choices))]
    if counts[value] != 1:
        return Question(kind, wording.format(**{known: value}), UNKNOWN if counts[value] else NONE)
    (answer,) = [getattr(item, kind) for item in objects if getattr(item, known) == value]
    return Question(kind, wording.format(**{known: value}), answer)


def _ask_relation(wording: str, objects: Sequence[SceneObject], width: int, rng: np.random.Generator) -> Question:
    """Asks which of two objects is left; with less than two, or now and then, about one that is not there."""
    pairs = [(a, b) for a in objects for b in objects if abs(a.centre[1] - b.centre[1]) > RELATION_GAP * width]
    if pairs and rng.random() >= UNCLEAR_SHARE / 2:
        first, second = pairs[rng.integers(len(pairs))]
        answer = "left" if first.centre[1] < second.centre[1] else "right"
        return Question("relation", wording.format(first=first.name, second=second.name), answer)
    present = {item.name for item in objects}
    names = [objects[rng.integers(len(objects))].name if objects else _any_name(rng)]
    while len(names) < 2:
        if (name := _any_name(rng)) not in present and name not in names:
            names.append(name)
    order = rng.permutation(2)
    wording = wording.format(first=names[order[0]], second=names[order[1]])
    return Question("relation", wording, UNKNOWN)


def _any_name(rng: np.random.Generator) -> str:
    return f"{list(COLOURS)[rng.integers(len(COLOURS))]} {SHAPES[rng.integers(len(SHAPES))]}"
