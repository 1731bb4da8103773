"""The recipe of tiles: the recipe `joint`'s checkpoint becomes one in LLaVA-1.6's format, which takes leaves, too."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from playground import tiles
from playground.examination import Examinee, examination
from playground.presets import TILED
from playground.questions import V_STAR
from playground.schedules import CHECKPOINTS, RECIPES, LlavaSchedule, TrainingConfig, shipped_path
from qlip import QLIPConfig
from scripts.bench import tiles_accuracy
from tests.playground.exams import keep_kinds

JOINT = shipped_path("joint")
"""What the recipe begins with."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two steps."""
    out = tmp_path_factory.mktemp("tiles")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "TILES_SCHEDULES", {"tiles": LlavaSchedule(steps=2, rate=1e-3, batch=2)})
        tiles.train_on_tiles(TrainingConfig(out, scenes=6, stages=RECIPES["tiles"]))
    return out


def test_the_result_is_in_the_format_of_llava_16(trained):
    config = json.loads((trained / "tiles" / "config.json").read_text())
    assert (config["image_aspect_ratio"], config["mm_patch_merge_type"]) == ("anyres", "spatial_unpad")
    assert config["image_grid_pinpoints"] == tiles.PINPOINTS and config["qlip"] is False
    weights, before = (load_file(folder / "model.safetensors") for folder in (trained / "tiles", JOINT))
    assert set(weights) - set(before) == {"model.image_newline"}
    tower = next(name for name in before if name.endswith("layers.0.mlp.fc1.weight"))
    assert not torch.equal(weights[tower], before[tower].float())
    assert ">tiles</text>" in (trained / "loss.svg").read_text()


def test_the_finished_checkpoint_holds_the_same_in_half_precision_and_nothing_of_this_machine(trained):
    final, saved = (load_file(trained / name / "model.safetensors") for name in (CHECKPOINTS["tiles"], "tiles"))
    assert all(torch.equal(final[name], saved[name].half()) for name in saved) and set(final) == set(saved)
    assert str(trained) not in (text := (trained / CHECKPOINTS["tiles"] / "config.json").read_text())
    assert str(JOINT.parent) not in text and json.loads(text)["mm_vision_tower"] == "."


def test_the_shipped_model_of_tiles_sees_small_objects_by_leaves():
    """docs/results/tiles-accuracy.md, on 8 scenes: V* 92 against 67 by random leaves with more tokens."""
    exam = keep_kinds(examination(tiles_accuracy.SCENES["448 px, 12-24 px"], 7601, 8), V_STAR)
    ways = ("image, budget 128", "random leaves of the image, 128")
    shipped = shipped_path("tiles")
    leaves, random = (Examinee.load(shipped, tiles_accuracy.WAYS[way], "cpu").take(exam) for way in ways)
    assert leaves.v_star > 0.8 > random.v_star and leaves.tokens < random.tokens


def test_training_pictures_are_larger_than_a_tile_and_of_any_aspect(trained):
    sizes = [Image.open(file).size for file in (trained / "data" / "images").iterdir()]
    assert len(set(sizes)) > 1 and all(max(size) == 224 for size in sizes)


def test_it_is_examined_by_tiles_and_by_leaves(trained):
    exam = examination(replace(TILED, backgrounds=("flat",)), 7, 2)
    whole = Examinee.load(trained / "tiles", False, "cpu").take(exam)
    for tiling in ("image", "tiles"):
        leaves = Examinee.load(trained / "tiles", QLIPConfig(tiling=tiling, alpha=0.4), "cpu").take(exam)
        assert set(whole.accuracy) == set(leaves.accuracy) and 64 < leaves.tokens < whole.tokens


def test_the_benchmark_prints_a_row_for_each_way(trained, capsys, monkeypatch):
    scenes = {name: tiles_accuracy.SCENES[name] for name in ("as in training", "448 px, 24-48 px")}
    monkeypatch.setattr(tiles_accuracy, "SCENES", scenes)
    flags = ["--model-path", str(trained / "tiles"), "--scenes", "1", "--device", "cpu"]
    assert tiles_accuracy.main([*flags, "--ways", "anyres", "image, budget 64"]) == 0
    header, _, anyres, image = capsys.readouterr().out.splitlines()
    assert header.count("|") == anyres.count("|") == 2 + len(scenes)
    assert anyres.count("(336)") == 1 and image.startswith("| image, budget 64 |")
