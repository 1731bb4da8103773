"""The shipped checkpoint: small, whole, and as able as it is said to be."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from playground.evaluate import CHECKPOINT, shipped_settings
from playground.examination import Examinee, examination
from playground.model import QLIP_SETTINGS, DemoModel, llava_state_dict
from playground.questions import KINDS
from playground.scenes import PRESETS
from playground.vocabulary import SIZE
from qlip import QLIPConfig

SCENES = 40


@pytest.fixture(scope="module")
def examinees():
    return {"clip": Examinee.load(CHECKPOINT, False, "cpu"), "qlip": Examinee.load(CHECKPOINT, True, "cpu")}


@pytest.fixture(scope="module")
def score(examinees):
    taken = {}

    def take(method, preset):
        if (method, preset) not in taken:
            taken[method, preset] = examinees[method].take(examination(PRESETS[preset], 8000, SCENES))
        return taken[method, preset]

    return take


def test_the_weights_are_those_of_the_demo_model_in_under_5_mb():
    assert (CHECKPOINT / "model.safetensors").stat().st_size < 5_000_000
    shapes = {name: weight.shape for name, weight in load_file(CHECKPOINT / "model.safetensors").items()}
    assert shapes == {name: weight.shape for name, weight in llava_state_dict(DemoModel(SIZE)).items()}


def test_the_checkpoint_ships_with_qlip_on():
    assert json.loads((CHECKPOINT / "config.json").read_text())["qlip"] == QLIP_SETTINGS
    assert shipped_settings(str(CHECKPOINT), {}) == QLIPConfig(**QLIP_SETTINGS)


def test_base_scenes_are_answered_with_the_clip_tower(score):
    accuracy = score("clip", "base").accuracy
    assert sum(accuracy[kind] for kind in KINDS if kind != "listing") / (len(KINDS) - 1) >= 0.9


@pytest.mark.parametrize("preset", ["detail-smooth", "detail-textured"])
def test_small_objects_need_the_quadtree(score, preset):
    assert score("clip", preset).v_star <= 0.65
    assert score("qlip", preset).v_star >= 0.9
    assert score("qlip", preset).tokens <= 1.5 * 64
