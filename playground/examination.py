"""Examinations of a checkpoint: held-out scenes with questions, and the share of right answers by kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from llava.eval.run.answerer import Answerer
from llava.eval.run.generate import generate
from llava.mm_utils import tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.model.vision.image_tokens import ImageTokens
from llava.serve.engine import ChatEngine
from llava.serve.engine.params import Sampling
from playground.dialogue import DIALOGUE_KINDS, ask
from playground.presets import SceneSpec
from playground.questions import KINDS, V_STAR, Question, scene_questions
from playground.scenes import Scene, scene
from qlip import QLIPConfig

LONGEST_ANSWER = 40
"""Tokens of the longest answer."""
ROWS = 32
"""Prompts that are answered together."""


@dataclass(frozen=True)
class Examination:
    """Scenes with one question of each kind."""

    scenes: list[Scene]
    questions: list[list[Question]]

    @property
    def kinds(self) -> list[str]:
        """Kinds of the questions about a scene, in order."""
        return [item.kind for item in self.questions[0]]


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
    """Draws `count` scenes of series `seed` and asks one question of each kind about each.

    Questions about signs are asked where the spec has signs; what has no clear answer, where it has empty scenes.
    """
    scenes = [scene(spec, seed, index) for index in range(count)]
    kinds = DIALOGUE_KINDS if spec.sign_share > 0 else KINDS
    questions = [_ask(made, spec, kinds, np.random.default_rng((seed, index, 2))) for index, made in enumerate(scenes)]
    return Examination(scenes, questions)


def _ask(made: Scene, spec: SceneSpec, kinds: Sequence[str], rng: np.random.Generator) -> list[Question]:
    """Asks one question of each kind."""
    if not spec.needs_dialogue:
        return scene_questions(made.objects, made.size, rng, kinds)
    clear = KINDS if spec.objects[0] >= 2 else ()
    return [
        scene_questions(made.objects, made.size, rng, [kind])[0]
        if kind in clear and kind != "listing"
        else ask(kind, made.objects, made.sign, made.size, rng)
        for kind in kinds
    ]


class Examinee:
    """A loaded model, which answers greedily."""

    def __init__(self, engine: ChatEngine) -> None:
        self.engine = engine

    @classmethod
    def load(cls, model_path: str | Path, qlip: QLIPConfig | bool, device: str = "cuda") -> Examinee:
        """Loads a checkpoint with one choice of tower and settings."""
        return cls(ChatEngine(*load_pretrained_model(model_path, device=device, qlip=qlip)))

    def take(self, exam: Examination, first: str | None = None) -> Score:
        """Answers every question of an examination and counts the right ones.

        Args:
            exam: the questions.
            first: a question that is asked first, in the same conversation; its answer is not judged.
        """
        images = self.encode(exam.scenes)
        answers = self.answer_all(exam, images, first)
        right = np.array(
            [
                [said == item.answer.lower() for said, item in zip(row, asked, strict=True)]
                for row, asked in zip(answers, exam.questions, strict=True)
            ]
        )
        accuracy = dict(zip(exam.kinds, right.mean(axis=0).tolist(), strict=True))
        return Score(accuracy, float(np.mean([len(tokens.features) for tokens in images])))

    def answer_all(
        self, exam: Examination, images: Sequence[ImageTokens] | None = None, first: str | None = None
    ) -> list[list[str]]:
        """Answers every question of an examination, in lower case; a row for each scene.

        Args:
            exam: the questions.
            images: the scenes, encoded already.
            first: a question that is asked first, in the same conversation.
        """
        images = self.encode(exam.scenes) if images is None else images
        if first is not None:
            openings = Answerer(self.engine, max_new_tokens=LONGEST_ANSWER).answer(
                images, [(index, first) for index in range(len(images))]
            )
            rows = zip(*[[item.text for item in row] for row in exam.questions], strict=True)
            columns = [self.answer_second(first, openings, texts, images) for texts in rows]
            return [list(row) for row in zip(*columns, strict=True)]
        # Kind by kind, so that short answers do not wait for long ones.
        columns = [self.answer([item.text for item in kind], images) for kind in zip(*exam.questions, strict=True)]
        return [list(row) for row in zip(*columns, strict=True)]

    @torch.inference_mode()
    def encode(self, scenes: Sequence[Scene]) -> list[ImageTokens]:
        """Encodes scenes, each alone."""
        pictures = [Image.fromarray(made.image) for made in scenes]
        pixels = [self.engine.prepare_images([picture]) for picture in pictures]
        sizes = [[picture.size] for picture in pictures]
        return [self.engine.model.encode_tokens(image, size)[0] for image, size in zip(pixels, sizes, strict=True)]

    def answer(self, texts: Sequence[str], images: Sequence[ImageTokens]) -> list[str]:
        """Answers each text about its own image, in lower case."""
        answers = Answerer(self.engine, max_new_tokens=LONGEST_ANSWER).answer(images, list(enumerate(texts)))
        return [said.lower() for said in answers]

    def answer_second(
        self, first: str, openings: Sequence[str], texts: Sequence[str], images: Sequence[ImageTokens]
    ) -> list[str]:
        """Answers each text about its own image after `first` and the model's answer to it, in lower case."""
        sampling = Sampling(temperature=0.0, max_new_tokens=LONGEST_ANSWER)
        prompts = []
        for opening, text in zip(openings, texts, strict=True):
            conversation = self.engine.question(first, 1)
            conversation.messages[-1][1] = opening
            conversation.append_message(conversation.roles[0], text)
            conversation.append_message(conversation.roles[1], None)
            prompts.append(torch.tensor(tokenizer_image_token(conversation.get_prompt(), self.engine.tokenizer)))
        answers = []
        for start in range(0, len(prompts), ROWS):
            rows = slice(start, start + ROWS)
            answers += generate(self.engine, prompts[rows], images[rows], sampling)
        return [said.lower() for said in answers]
