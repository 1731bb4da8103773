"""A loaded QLIP tower: its sizes are its own, and other settings take effect whole or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from llava.mm_utils import process_images
from llava.model.builder import load_pretrained_model
from llava.model.multimodal_encoder.qlip_encoder import QLIPVisionTower
from qlip import QLIPConfig
from qlip.mlp import CoordinateMLP
from tests.llava.checkpoints import PICTURE, VISION, make_llava_checkpoint

UNSPLIT = {"alpha": 0.0, "max_tokens": None, "interpolation": "mlp", "mlp_residual": False}


@pytest.fixture(scope="module")
def priors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files of two priors of the tower's width, and of one that is too wide."""
    folder = tmp_path_factory.mktemp("priors")
    for seed, name in enumerate(("first", "second", "wide")):
        torch.manual_seed(seed)
        CoordinateMLP(VISION["hidden_size"] + 8 * (name == "wide"), hidden=16).save(folder / f"{name}.safetensors")
    return {name: str(folder / f"{name}.safetensors") for name in ("first", "second", "wide", "missing")}


@pytest.fixture
def tower(tmp_path: Path, priors: dict[str, str]) -> QLIPVisionTower:
    folder = make_llava_checkpoint(tmp_path, qlip={**UNSPLIT, "mlp": priors["first"]})
    return load_pretrained_model(folder, device="cpu")[1].get_vision_tower()


@torch.no_grad()
def features(tower: QLIPVisionTower, settings: QLIPConfig | None = None) -> torch.Tensor:
    return tower.encode_tokens(PICTURE, settings=settings)[0].features


def test_features_follow_the_prior_that_the_settings_name(tower, priors):
    first, start = features(tower), tower.settings
    tower.settings = replace(start, mlp=priors["second"])
    second = features(tower)
    assert not torch.allclose(first, second, atol=1e-2)
    tower.settings = replace(start, interpolation="bicubic", mlp=priors["first"])
    tower.settings = replace(start, mlp=priors["first"])
    assert torch.equal(features(tower), first)


@pytest.mark.parametrize(
    ("name", "words"), [("missing", "missing.safetensors"), ("wide", "embeddings of 72, the model has 64")]
)
def test_a_prior_that_cannot_be_used_changes_nothing(tower, priors, name, words):
    first, start = features(tower), tower.settings
    with pytest.raises((OSError, ValueError), match=words):
        tower.settings = replace(start, mlp=priors[name])
    assert tower.settings == tower.image_processor.qlip == start and tower.llava_config.qlip == start.to_dict()
    assert torch.equal(features(tower), first)


def test_a_single_call_takes_no_other_prior(tower, priors):
    assert torch.equal(features(tower, tower.settings), features(tower))
    with pytest.raises(
        ValueError, match=r"mlp is .*second.*, but the model has loaded the prior .*first.*; .* loads none"
    ):
        features(tower, replace(tower.settings, mlp=priors["second"]))


@torch.no_grad()
def test_the_native_grid_is_the_towers_whatever_the_image_processor_says(tmp_path):
    """Its class default, as of a processor that does not crop, is another size."""
    folder = make_llava_checkpoint(tmp_path, qlip={"alpha": 0.0, "max_tokens": None})
    CLIPImageProcessorPil(size={"height": 112, "width": 112}, do_center_crop=False).save_pretrained(folder)
    photo = Image.effect_noise((112, 112), 60).convert("RGB")
    tokens = {}
    for flag in (None, False):
        _, model, processor, _ = load_pretrained_model(folder, device="cpu", qlip=flag)
        images = process_images([photo], processor, model.config)
        tokens[flag] = model.get_vision_tower().encode_tokens(images)[0].features
    assert tokens[None].shape == (64, 64)
    torch.testing.assert_close(tokens[None], tokens[False], atol=1e-4, rtol=0)
