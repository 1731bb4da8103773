"""Questions: every answer follows from the objects, by a reading of the text that shares no code with the asking."""

from __future__ import annotations

import re

import numpy as np
import pytest

from playground.objects import COLOURS, SHAPES, SceneObject
from playground.questions import KINDS, WORDINGS, listing, scene_questions
from playground.scenes import PRESETS, scene

COLOUR = "|".join(COLOURS)
SHAPE = "|".join(SHAPES)


def read(text: str, objects: list[SceneObject]) -> str:
    """Answers a question from its text alone."""
    named = re.findall(rf"({COLOUR}) ({SHAPE})", text)
    if text.startswith("How many") or "number of" in text:
        return str(len(objects))
    if len(named) == 2:
        cols = [next(o.centre[1] for o in objects if (o.colour, o.shape) == pair) for pair in named]
        if text.startswith("On which side of"):
            cols.reverse()
        return "left" if cols[0] < cols[1] else "right"
    if len(named) == 1:
        return "yes" if any((o.colour, o.shape) == named[0] for o in objects) else "no"
    if shapes := re.findall(SHAPE, text):
        (colour,) = [o.colour for o in objects if o.shape == shapes[0]]
        return colour
    if colours := re.findall(COLOUR, text):
        (shape,) = [o.shape for o in objects if o.colour == colours[0]]
        return shape
    names = [f"a {o.colour} {o.shape}" for o in sorted(objects, key=lambda o: o.centre[1])]
    return ", ".join(names[:-1]) + " and " + names[-1]


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_answers_follow_from_the_objects(preset):
    spec = PRESETS[preset]
    for index in range(20):
        objects = scene(spec, 21, index).objects
        asked = scene_questions(objects, spec.size, np.random.default_rng(index), KINDS * 3)
        assert [item.answer for item in asked] == [read(item.text, list(objects)) for item in asked]


def test_every_wording_is_used_and_each_kind_has_at_least_four():
    objects = scene(PRESETS["base"], 1, 1).objects
    asked = scene_questions(objects, 112, np.random.default_rng(0), KINDS * 100)
    for kind, wordings in WORDINGS.items():
        assert len(wordings) >= 4
        patterns = [re.sub(r"\\{\w+\\}", ".+", re.escape(wording)) for wording in wordings]
        texts = [item.text for item in asked if item.kind == kind]
        assert all(any(re.fullmatch(pattern, text) for text in texts) for pattern in patterns)


def test_yes_and_no_are_about_equally_frequent():
    objects = scene(PRESETS["base"], 1, 2).objects
    asked = scene_questions(objects, 112, np.random.default_rng(0), ["existence"] * 400)
    assert 150 < sum(item.answer == "yes" for item in asked) < 250


def test_listing_goes_from_left_to_right():
    ring, cross, circle = (
        SceneObject("yellow", "ring", (50, 90), 10),
        SceneObject("blue", "cross", (10, 40), 10),
        SceneObject("red", "circle", (90, 10), 10),
    )
    assert listing([ring, cross, circle]) == "a red circle, a blue cross and a yellow ring"
    assert listing([ring, cross]) == "a blue cross and a yellow ring"
    assert listing([ring]) == "a yellow ring"


def test_questions_depend_on_the_generator_alone():
    objects = scene(PRESETS["base"], 1, 3).objects
    first, again = (scene_questions(objects, 112, np.random.default_rng(9)) for _ in range(2))
    assert first == again


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="weight.*colour"):
        scene_questions(scene(PRESETS["base"], 1, 3).objects, 112, np.random.default_rng(0), ["weight"])
