"""Where the objects are that questions ask for, and which of their cells a question splits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from llava.model.builder import load_pretrained_model
from llava.model.vision.prepared_image import prepare_leaves
from llava.serve.engine import ChatEngine
from llava.utils import demo_model_path
from playground.objects import SceneObject
from playground.questions import WORDINGS, Question
from qlip import QLIPConfig
from qlip.cutting import ImageCutter
from scripts.bench.evidence.question.measure import draw_scenes
from scripts.bench.evidence.question.places import Asked, ask, asked_object, root_of, row

RING = SceneObject("red", "ring", (20.0, 30.0), 16)
CROSS = SceneObject("blue", "cross", (200.0, 300.0), 16)


@pytest.mark.parametrize("wording", WORDINGS["colour"] + WORDINGS["shape"])
def test_the_object_that_a_question_names_is_found(wording: str) -> None:
    kind = "colour" if "{shape}" in wording else "shape"
    text = wording.format(shape="cross", colour="blue")
    assert asked_object(Question(kind, text, "?"), [RING, CROSS]) is CROSS


@pytest.mark.parametrize("size", [(448, 448), (448, 300), (500, 1000)], ids=str)
def test_a_place_lies_in_the_root_whose_pixels_hold_it(size: tuple[int, int]) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8))
    settings = QLIPConfig(budget="question", max_tokens=None, noise_floor=False)
    question = prepare_leaves(picture, ImageCutter(14, 112), settings).question
    assert question is not None
    (rows, cols), longest = question.first.leaves.grid, max(question.first.leaves.grid)
    numbers = np.arange(rows * cols * 64 // longest**2).reshape(rows * 8 // longest, cols * 8 // longest)
    for y, x in ((0, 0), (size[0] // 2, size[1] // 3), (size[0] - 1, size[1] - 1)):
        expected = numbers[y * len(numbers) // size[0], x * numbers.shape[1] // size[1]]
        assert root_of(question, (y, x), size) == expected


def test_a_question_that_may_split_all_cells_finds_every_object() -> None:
    engine = ChatEngine(*load_pretrained_model(demo_model_path(), device="cpu", qlip=True))
    ((made, asked),) = draw_scenes((16, 28), 9101, 1)
    asked = [item for item in asked if item.kind in ("colour", "shape")]
    every = ask(engine, made, asked, 100.0)
    assert len(every) == len(asked)
    assert all(all(answer.found) for answer in every)
    flat = replace(made, image=np.full_like(made.image, 128))
    assert ask(engine, flat, asked, 0.1) == []  # nothing to split
    engine.close()


def test_shares_are_of_those_that_were_found_and_of_the_others() -> None:
    answers = [Asked((True, False), True, False), Asked((True, True), True, True), Asked((False, False), False, True)]
    assert row("12-24 px", 0.3, answers, 1) == "| 12-24 px | 0.30 | 66.7 | 33.3 | 100.0 | 100.0 | 50.0 | 50.0 | 66.7 |"
