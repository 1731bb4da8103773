"""Pictures with questions: generated scenes by split, or a folder in LLaVA's format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from llava.eval.run.questions import Question, read_lines
from playground.objects import SceneObject
from playground.questions import scene_questions
from playground.scenes import scene
from scripts.bench.evidence.scene_sets import KINDS, SCENE_SETS, SCENES, series_of


@dataclass(frozen=True)
class QuestionSet:
    """Pictures, and the questions about each."""

    name: str
    pictures: Sequence[Image.Image]
    questions: Sequence[Sequence[Question]]


def draw_set(name: str, split: str, scenes: int = SCENES) -> QuestionSet:
    """Draws the scenes of one of `SCENE_SETS` and asks one question of each kind about each.

    Raises:
        ValueError: the set or the split is unknown.
    """
    if name not in SCENE_SETS:
        raise ValueError(f"no set {name!r}; sets are {', '.join(SCENE_SETS)}")
    size, seed = SCENE_SETS[name].spec.size, series_of(split)
    pictures, questions = [], []
    for index in range(scenes):
        picture, objects = draw_scene(name, split, index)
        asked = scene_questions(objects, size, np.random.default_rng((seed, index, 2)), KINDS)
        pictures.append(picture)
        questions.append(
            [
                Question(f"{index}-{item.kind}", item.text, item.text, None, answer=item.answer, category=item.kind)
                for item in asked
            ]
        )
    return QuestionSet(name, pictures, questions)


def draw_scene(name: str, split: str, index: int) -> tuple[Image.Image, tuple[SceneObject, ...]]:
    """Draws one picture of a set; returns it and its objects."""
    wanted, seed = SCENE_SETS[name], series_of(split)
    made = scene(wanted.spec, seed, index)
    return Image.fromarray(_add_noise(made.image, wanted.noise, (seed, index, 3))), made.objects


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


def _add_noise(image: np.ndarray, strength: float, seed: tuple[int, ...]) -> np.ndarray:
    """Lays Gaussian noise of standard deviation `strength` over an image, uint8 (H, W, 3)."""
    if not strength:
        return image
    noise = np.random.default_rng(seed).normal(0, strength, image.shape)
    return np.clip(image + noise, 0, 255).round().astype(np.uint8)
