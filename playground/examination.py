"""Examinations of a checkpoint: held-out scenes with questions, and the share of right answers by kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from llava.eval.run.answerer import Answerer
from llava.model.builder import load_pretrained_model
from llava.model.image_tokens import ImageTokens
from llava.serve.engine import ChatEngine
from playground.presets import SceneSpec
from playground.questions import KINDS, V_STAR, Question, scene_questions
from playground.scenes import Scene, scene
from qlip import QLIPConfig


@dataclass(frozen=True)
class Examination:
    """Scenes with one question of each kind."""

    scenes: list[Scene]
    questions: list[list[Question]]


@dataclass(frozen=True)
class Score:
    """The result of an examination."""

    accuracy: dict[str, float]
    """Share of right answers by kind."""
    tokens: float
    """Mean number of visual tokens of a scene."""

    @property
    def v_star(self) -> float:
        """Mean over colour, shape and relation."""
        return float(np.mean([self.accuracy[kind] for kind in V_STAR]))


def examination(spec: SceneSpec, seed: int, count: int) -> Examination:
    """Draws `count` scenes of series `seed` and asks one question of each kind about each."""
    scenes = [scene(spec, seed, index) for index in range(count)]
    questions = [
        scene_questions(made.objects, spec.size, np.random.default_rng((seed, index, 2)), KINDS)
        for index, made in enumerate(scenes)
    ]
    return Examination(scenes, questions)


class Examinee:
    """A loaded model, which answers greedily."""

    def __init__(self, engine: ChatEngine) -> None:
        self.engine = engine

    @classmethod
    def load(cls, model_path: str | Path, qlip: QLIPConfig | bool, device: str = "cuda") -> Examinee:
        """Loads a checkpoint with one choice of tower and settings."""
        return cls(ChatEngine(*load_pretrained_model(model_path, device=device, qlip=qlip)))

    def take(self, exam: Examination) -> Score:
        """Answers every question of an examination and counts the right ones."""
        images = self.encode(exam.scenes)
        answers = self.answer_all(exam, images)
        right = np.array(
            [
                [said == item.answer for said, item in zip(row, asked, strict=True)]
                for row, asked in zip(answers, exam.questions, strict=True)
            ]
        )
        accuracy = dict(zip(KINDS, right.mean(axis=0).tolist(), strict=True))
        return Score(accuracy, float(np.mean([len(tokens.features) for tokens in images])))

    def answer_all(self, exam: Examination, images: Sequence[ImageTokens] | None = None) -> list[list[str]]:
        """Answers every question of an examination, in lower case; a row for each scene.

        Args:
            exam: the questions.
            images: the scenes, encoded already.
        """
        images = self.encode(exam.scenes) if images is None else images
        # Kind by kind, so that short answers do not wait for long ones.
        columns = [self.answer([item.text for item in kind], images) for kind in zip(*exam.questions, strict=True)]
        return [list(row) for row in zip(*columns, strict=True)]

    @torch.inference_mode()
    def encode(self, scenes: Sequence[Scene]) -> list[ImageTokens]:
        """Encodes scenes, each alone."""
        pixels = [self.engine.prepare_images([Image.fromarray(made.image)]) for made in scenes]
        return [self.engine.model.encode_tokens(image)[0] for image in pixels]

    def answer(self, texts: Sequence[str], images: Sequence[ImageTokens]) -> list[str]:
        """Answers each text about its own image, in lower case."""
        answers = Answerer(self.engine, max_new_tokens=40).answer(images, list(enumerate(texts)))
        return [said.lower() for said in answers]
