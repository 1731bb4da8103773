"""Loading a tower: a folder without one, or with a damaged one, is one line that names it."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor

import qlip
from qlip import QLIPVisionModel
from qlip.cli import main
from qlip.pretrained import load_image_processor, load_projection, load_tower
from tests.qlip.towers import NATIVE, make_clip, make_tower

LLAVA = {"architectures": ["LlavaLlamaForCausalLM"], "mm_vision_tower": "openai/clip-vit-large-patch14-336"}
"""What LLaVA's own checkpoints say, beside their type."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A CLIP folder that nothing is wrong with."""
    folder = tmp_path_factory.mktemp("tower") / "clip"
    make_clip().save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": NATIVE}, crop_size=NATIVE).save_pretrained(folder)
    return folder


def damaged(whole, folder, name, change):
    """A copy of the folder, of which one file is changed (bytes -> bytes) or left out (None)."""
    folder.mkdir()
    for file in whole.iterdir():
        data = file.read_bytes()
        if file.name == name:
            data = change(data)
        if data is not None:
            (folder / file.name).write_bytes(data)
    return folder


def say(**values):
    return lambda data: json.dumps({**json.loads(data), **values}).encode()


def without(part):
    def drop(path):
        save_file({name: value for name, value in load_file(path).items() if part not in name}, path, {"format": "pt"})

    return drop


WRONG = {
    "truncated weights": ("model.safetensors", lambda data: data[:-100], "no tower can be loaded from .*"),
    "no weights": ("model.safetensors", lambda data: None, r"no tower can be loaded from .*model\.safetensors"),
    "corrupt config": (
        "config.json",
        lambda data: data[:-9],
        r"no tower can be loaded from .*config\.json' is not a valid",
    ),
    "a list": ("config.json", lambda data: b"[1]", r"no tower can be loaded from .*no config\.json with a model_type"),
    "no config": ("config.json", lambda data: None, r"no tower can be loaded from .*no config\.json with a model_type"),
    "no type": ("config.json", lambda data: b"{}", r"no tower can be loaded from .*no config\.json with a model_type"),
    "unknown type": ("config.json", say(model_type="new"), "is of type 'new'; allowed are clip"),
    "impossible value": (
        "config.json",
        lambda data: data.replace(b'"num_attention_heads": 4', b'"num_attention_heads": "x"'),
        "no tower can be loaded from .*expected int, got str",
    ),
    "another model": ("config.json", say(model_type="bert"), "is of type 'bert'; allowed are clip"),
    "no processor": ("preprocessor_config.json", lambda data: None, "no tower can be loaded from .*"),
    **{
        kind: (
            "config.json",
            lambda data, kind=kind: json.dumps({**LLAVA, "model_type": kind}).encode(),
            r"is a whole LLaVA checkpoint, not a vision tower; write its tower with `python -m scripts\.extract_tower"
            r" --model-path .*broken --out TOWER` and give TOWER",
        )
        for kind in ("llava", "llava_llama", "llava_mistral", "llava_mpt", "llava_qwen")
    },
}


@pytest.mark.parametrize("command", ["fit", "bias"])
@pytest.mark.parametrize("kind", WRONG)
def test_a_folder_that_is_no_tower(whole, tmp_path, capsys, kind, command):
    name, change, message = WRONG[kind]
    folder = damaged(whole, tmp_path / "broken", name, change)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (60, 60)).save(tmp_path / "images" / "a.png")
    flags = ["--tower", str(folder), "--images", str(tmp_path / "images"), "--out", str(tmp_path / "out.safetensors")]
    assert main([command, *flags]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("qlip: ")]
    assert len(lines) == 1 and str(folder) in lines[0]
    with pytest.raises(ValueError, match=message):
        load_tower(str(folder))
        load_image_processor(str(folder))
    assert not (tmp_path / "out.safetensors").exists()


def test_weights_that_are_missing_are_not_drawn_at_random(whole, tmp_path):
    folder = damaged(whole, tmp_path / "broken", "none", None)
    without("layers.1.mlp")(folder / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"broken lacks 4 weights of its vision tower, such as encoder\.layers\.1\.mlp"
    ):
        load_tower(str(folder))
    folder = damaged(whole, tmp_path / "unprojected", "none", None)
    without("visual_projection")(folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"unprojected, of type 'clip', has no visual_projection\.weight"):
        load_projection(str(folder))


def test_a_prior_is_fitted_to_a_tower_without_an_image_processor(whole, tmp_path):
    """The table alone decides; images would need the processor's mean and standard deviation."""
    folder = damaged(whole, tmp_path / "bare", "preprocessor_config.json", lambda data: None)
    outs = [tmp_path / "bare.safetensors", tmp_path / "whole.safetensors"]
    for tower, out in zip((folder, whole), outs, strict=True):
        assert main(["fit", "--tower", str(tower), "--out", str(out)]) == 0
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_settings_that_an_attached_model_saved_are_not_those_of_training(tmp_path):
    """They would name a prior, and cut images otherwise than the flags say."""
    model, _ = qlip.attach(make_tower("clip"), alpha=0.1, max_tokens=3)
    model.save_pretrained(tmp_path)
    assert load_tower(str(tmp_path)).qlip == qlip.QLIPConfig()


@torch.no_grad()
def test_tower_and_projection_of_a_whole_clip_are_its_own(whole):
    tower, processor = load_tower(str(whole)), load_image_processor(str(whole))
    assert isinstance(tower, QLIPVisionModel) and processor.image_mean == CLIPImageProcessor().image_mean
    expected = make_tower("clip").state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in tower.state_dict().items())
    assert torch.equal(load_projection(str(whole)).weight, make_clip().visual_projection.weight)
