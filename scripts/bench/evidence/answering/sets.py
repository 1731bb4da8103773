"""Pictures with questions: generated scenes by split, or a folder in LLaVA's format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from llava.eval.run.inputs.questions import Question, read_lines
from playground.dialogue import ask
from playground.questions import scene_questions
from playground.scenes import Scene, add_noise, scene
from scripts.bench.evidence.answering.scene_sets import SCENES, find_set, series_of


@dataclass(frozen=True)
class QuestionSet:
    """Pictures, and the questions about each."""

    name: str
    pictures: Sequence[Image.Image]
    questions: Sequence[Sequence[Question]]


def draw_set(name: str, split: str, scenes: int = SCENES) -> QuestionSet:
    """Draws the scenes of one of `SET_NAMES` and asks one question of each of its kinds about each.

    Raises:
        ValueError: the set or the split is unknown.
    """
    wanted, seed = find_set(name, split), series_of(split)
    pictures, questions = [], []
    for index in range(scenes):
        picture, made = draw_scene(name, split, index)
        rng = np.random.default_rng((seed, index, 2))
        asked = scene_questions(made.objects, made.size, rng, wanted.kinds)
        if wanted.spec.sign_share > 0:
            asked.append(ask("sign", made.objects, made.sign, made.size, rng))
        pictures.append(picture)
        questions.append(
            [
                Question(f"{index}-{item.kind}", item.text, item.text, None, answer=item.answer, category=item.kind)
                for item in asked
            ]
        )
    return QuestionSet(name, pictures, questions)


def draw_scene(name: str, split: str, index: int) -> tuple[Image.Image, Scene]:
    """Draws one picture of a set; returns it and its scene, which has no noise yet."""
    wanted, seed = find_set(name, split), series_of(split)
    made = scene(wanted.spec, seed, index)
    return Image.fromarray(add_noise(made.image, wanted.noise, (seed, index, 3))), made


def read_set(folder: Path) -> QuestionSet:
    """Reads `questions.jsonl`, `answers.jsonl` and `images/`, as `python -m playground.scenes` writes them."""
    rows = read_lines(folder / "questions.jsonl", folder / "images", folder / "answers.jsonl")
    by_image: dict[Path, list[Question]] = {}
    for row in rows:
        by_image.setdefault(Path(str(row.image)), []).append(row)
    pictures = []
    for name in by_image:
        with Image.open(name) as picture:
            pictures.append(picture.convert("RGB"))
    return QuestionSet(folder.name, pictures, list(by_image.values()))
