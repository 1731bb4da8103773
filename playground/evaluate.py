"""Measures a checkpoint on held-out scenes: `python -m playground.evaluate`.

Accuracy by kind of question and kind of scene, and visual tokens, for four ways of seeing: CLIP's (downsized), QLIP as
shipped, the uniform grid at native size, and random cells as many as QLIP's. It drives the model as any client does.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from llava.command import OneLineParser, integer, parse_and_run
from llava.eval.run.answerer import Answerer
from llava.eval.sweep.grid import own_settings
from llava.model.builder import load_pretrained_model
from llava.model.image_tokens import ImageTokens
from llava.serve.engine import ChatEngine
from llava.utils import default_device, device_flag
from playground.questions import KINDS, Question, scene_questions
from playground.scenes import PRESETS, Scene, SceneSpec, scene
from qlip import QLIPConfig

logger = logging.getLogger(__name__)

METHODS = ("clip", "qlip", "uniform", "random")
SHOWN_PRESETS = ("base", "detail-smooth", "detail-textured", "large")
V_STAR = ("colour", "shape", "relation")
CHECKPOINT = Path(__file__).parent / "llava-demo"


@dataclass(frozen=True)
class Examination:
    """Scenes with one question of each kind."""

    scenes: list[Scene]
    questions: list[list[Question]]


@dataclass(frozen=True)
class Score:
    """What a way of seeing achieved on an examination."""

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
    """A checkpoint seeing in one way."""

    def __init__(self, model_path: str, qlip: QLIPConfig | bool, device: str = "cuda") -> None:
        name = Path(model_path).name
        self.engine = ChatEngine(*load_pretrained_model(model_path, None, name, device=device, qlip=qlip))

    def take(self, exam: Examination) -> Score:
        """Answers every question greedily; kinds apart, so that short answers do not wait for long ones."""
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
        """One answer a text, each about its own image, in lower case."""
        return [said.lower() for said in Answerer(self.engine, max_new_tokens=40).answer(seen, list(enumerate(texts)))]


def compare(
    model_path: str, exam: Examination, methods: Sequence[str], shipped: QLIPConfig, device: str
) -> dict[str, Score]:
    """Lets the checkpoint take an examination with each of `methods`."""
    scores: dict[str, Score] = {}
    for method in sorted(methods, key=METHODS.index):
        if method == "random" and "qlip" not in scores:
            raise ValueError("random sees as many cells as qlip: evaluate both")
        settings: QLIPConfig | bool = False
        if method == "qlip":
            settings = shipped
        elif method == "uniform":
            settings = QLIPConfig(alpha=0.0, max_tokens=None)
        elif method == "random":
            leaves = scores["qlip"].tokens - (64 if shipped.thumbnail else 0)
            settings = replace(shipped, criterion="random", alpha=0.0, max_tokens=round(leaves))
        scores[method] = Examinee(model_path, settings, device).take(exam)
    return scores


def shipped_settings(model_path: str, changes: dict[str, Any]) -> QLIPConfig:
    """The checkpoint's QLIP settings, with `changes` laid over them."""
    return QLIPConfig.from_dict(own_settings(model_path).to_dict() | changes)


def settings_text(text: str) -> dict[str, Any]:
    """Type of a flag that takes settings as a JSON object."""
    try:
        settings = json.loads(text)
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise argparse.ArgumentTypeError(f"""{text!r} is no JSON object, such as '{{"alpha": 0.5}}'""")
    return settings


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `python -m playground.evaluate` and returns the exit code."""
    parser = OneLineParser(prog="evaluate", description="Measure the demo model on held-out scenes.")
    parser.add_argument("--model-path", default=str(CHECKPOINT), help="folder of the checkpoint")
    parser.add_argument("--seed", type=integer(0), default=9000, help="series of scenes; training used 1")
    parser.add_argument(
        "--n", type=integer(), default=100, help="scenes of each preset, with one question of each kind"
    )
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=SHOWN_PRESETS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--qlip", type=settings_text, default={}, help="settings laid over the checkpoint's, as JSON")
    parser.add_argument("--device", type=device_flag, default=default_device(), help="(%(default)s)")
    return parse_and_run(parser, run, argv)


def run(options: argparse.Namespace) -> None:
    """Measures what the flags name and prints a table."""
    shipped = shipped_settings(options.model_path, options.qlip)
    print(f"{'scenes':16}{'seen by':9}{'tokens':>7}{'V*':>7}" + "".join(f"{kind:>11}" for kind in KINDS))
    for preset in options.presets:
        exam = examination(PRESETS[preset], options.seed, options.n)
        scores = compare(options.model_path, exam, options.methods, shipped, options.device)
        for method, score in scores.items():
            shares = "".join(f"{100 * score.accuracy[kind]:11.1f}" for kind in KINDS)
            print(f"{preset:16}{method:9}{score.tokens:7.1f}{100 * score.v_star:7.1f}{shares}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
