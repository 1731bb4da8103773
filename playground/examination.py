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
    """A checkpoint with one choice of tower and settings."""

    def __init__(self, model_path: str, qlip: QLIPConfig | bool, device: str = "cuda") -> None:
        name = Path(model_path).name
        self.engine = ChatEngine(*load_pretrained_model(model_path, None, name, device=device, qlip=qlip))

    def take(self, exam: Examination) -> Score:
        """Answers every question greedily, kind by kind, so that short answers do not wait for long ones."""
        seen = [self._see(made) for made in exam.scenes]
        accuracy = {}
        for number, kind in enumerate(KINDS):
            asked = [row[number] for row in exam.questions]
            answers = self._answer([item.text for item in asked], seen)
            accuracy[kind] = float(np.mean([said == item.answer for said, item in zip(answers, asked, strict=True)]))
        return Score(accuracy, float(np.mean([len(tokens.features) for tokens in seen])))

    @torch.inference_mode()
    def _see(self, made: Scene) -> ImageTokens:
        pixels = self.engine.prepare_images([Image.fromarray(made.image)])
        return self.engine.model.encode_tokens(pixels)[0]

    def _answer(self, texts: Sequence[str], seen: Sequence[ImageTokens]) -> list[str]:
        """Answers each text about its own image, in lower case."""
        return [said.lower() for said in Answerer(self.engine, max_new_tokens=40).answer(seen, list(enumerate(texts)))]
