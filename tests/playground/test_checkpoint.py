"""The shipped checkpoints: small, whole, and as able as they are said to be."""

from __future__ import annotations

import json
from functools import cache
from statistics import fmean

import pytest
from safetensors.torch import load_file

from llava.utils import demo_model_path
from playground.corpus import PIECES
from playground.evaluate import shipped_settings
from playground.examination import Examinee, examination
from playground.model import JOINT, LLAVA, QLIP_SETTINGS, DemoModel, llava_state_dict
from playground.presets import PRESETS
from playground.questions import KINDS, V_STAR
from playground.schedules import shipped_path
from playground.vocabulary import SIZE
from qlip import QLIPConfig
from tests.playground.exams import keep_kinds

BASE_SCENES = 32  # of which some answers may differ by another CPU's rounding, and the bounds still hold
DETAIL_SCENES = 12
EMBEDDED = demo_model_path()
ABLATION = shipped_path("joint")
"""Of the recipe `joint`, whose decoder has seen parts of the grid at gaps."""


@cache
def load(checkpoint, method):
    return Examinee.load(checkpoint, method == "qlip", "cpu")


@cache
def score(checkpoint, method, preset, kinds, scenes, first=None):
    """Examines a checkpoint by a tower on a preset's scenes; `first` is a question that is asked before."""
    return load(checkpoint, method).take(keep_kinds(examination(PRESETS[preset], 8000, scenes), kinds), first)


def accuracies(checkpoint, scenes):
    """Of each kind of question about base scenes, but for a listing, which is right or wrong as a whole."""
    return score(checkpoint, "clip", "base", tuple(kind for kind in KINDS if kind != "listing"), scenes).accuracy


@pytest.mark.parametrize(
    ("checkpoint", "architecture", "pieces", "most_bytes"),
    [(EMBEDDED, LLAVA, PIECES, 8_000_000), (ABLATION, JOINT, SIZE, 5_000_000)],
)
def test_the_weights_are_those_of_the_recipe(checkpoint, architecture, pieces, most_bytes):
    assert (checkpoint / "model.safetensors").stat().st_size < most_bytes
    shapes = {name: weight.shape for name, weight in load_file(checkpoint / "model.safetensors").items()}
    assert shapes == {name: weight.shape for name, weight in llava_state_dict(DemoModel(pieces, architecture)).items()}


@pytest.mark.parametrize("checkpoint", [EMBEDDED, ABLATION])
def test_the_checkpoint_ships_with_qlip_on(checkpoint):
    assert json.loads((checkpoint / "config.json").read_text())["qlip"] == QLIP_SETTINGS
    assert shipped_settings(str(checkpoint), {}) == QLIPConfig(**QLIP_SETTINGS)


@pytest.mark.parametrize(("checkpoint", "scenes"), [(EMBEDDED, BASE_SCENES), (ABLATION, BASE_SCENES // 2)])
def test_base_scenes_are_answered_with_the_clip_tower(checkpoint, scenes):
    assert fmean(accuracies(checkpoint, scenes).values()) >= 0.9


def test_a_second_question_is_answered_as_well_as_a_first():
    first = accuracies(EMBEDDED, BASE_SCENES)
    second = score(EMBEDDED, "clip", "base", V_STAR, BASE_SCENES, "What is in the picture?").accuracy
    assert fmean(second.values()) >= fmean(first[kind] for kind in V_STAR) - 0.02


@pytest.mark.parametrize(
    ("checkpoint", "most", "least"),
    [(EMBEDDED, 0.5, 0.85), (ABLATION, 0.65, 0.9)],
)
def test_small_objects_need_the_quadtree(checkpoint, most, least):
    clip, qlip = (score(checkpoint, method, "detail-textured", V_STAR, DETAIL_SCENES) for method in ("clip", "qlip"))
    assert clip.v_star <= most and qlip.v_star >= least
    assert qlip.tokens <= 1.5 * 64
