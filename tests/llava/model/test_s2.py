"""S2, the CLIP tower at several scales, against windows that are cut, encoded and averaged one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from llava.mm_utils import process_images
from llava.model.builder import load_empty_tower, load_pretrained_model
from llava.model.text_only import smallest_image
from tests.llava.checkpoints import PROMPT, TEXT, VISION, llava_config, llava_state, transformers_model, write_tokenizer

SCALES = (112, 224, 336)
S2 = {"s2": True, "s2_scales": "112,224,336", "mm_hidden_size": 192, "mm_vision_config": VISION}
PICTURES = torch.randn(2, 3, 336, 336, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("s2")
    state = llava_state(transformers_model())
    state["model.mm_projector.0.weight"] = torch.randn(TEXT["hidden_size"], 192) * 0.2
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(llava_config(**S2)))
    write_tokenizer(folder)
    return folder


def naive(clip: Any, picture: Tensor) -> Tensor:
    """(64, 192): features of a picture (3, 336, 336) on CLIP's grid of 8 x 8."""
    columns = []
    for scale in SCALES:
        resized = F.interpolate(picture[None], size=(scale, scale), mode="bicubic")
        raster = torch.zeros(scale // 14, scale // 14, 64)
        for top in range(0, scale, 112):
            for left in range(0, scale, 112):
                window = resized[..., top : top + 112, left : left + 112]
                hidden = clip(window, output_hidden_states=True).hidden_states[-2][0, 1:]
                raster[top // 14 : top // 14 + 8, left // 14 : left // 14 + 8] = hidden.reshape(8, 8, 64)
        size = scale // 112  # cells of this scale in a cell of the grid, per side
        mean = torch.stack([
            raster[row * size : (row + 1) * size, col * size : (col + 1) * size].mean((0, 1))
            for row in range(8)
            for col in range(8)
        ])  # fmt: skip
        columns.append(mean)
    return torch.cat(columns, dim=1)


@torch.no_grad()
def test_features_are_those_of_the_windows_one_by_one(folder):
    _, model, processor, _ = load_pretrained_model(folder, device="cpu")
    tower = model.get_vision_tower()
    clip = transformers_model().model.vision_tower
    expected = torch.stack([naive(clip, picture) for picture in PICTURES])
    torch.testing.assert_close(tower(PICTURES), expected, atol=1e-4, rtol=1e-4)
    assert (tower.hidden_size, tower.native_tokens, tower.count_tokens(PICTURES[0])) == (192, 64, 64)
    logits = model(PROMPT, images=PICTURES[:1]).logits
    assert logits.shape[1] == PROMPT.shape[1] - 1 + 64 and logits.isfinite().all()
    wide = Image.effect_noise((200, 100), 60).convert("RGB")
    assert process_images([wide], processor, model.config).shape == (1, 3, 336, 336)
    assert smallest_image(tower).shape == (3, 336, 336)


def test_a_tower_without_weights_prepares_the_largest_scale(folder):
    tower = load_empty_tower(folder)
    assert tower.input_size == 336 and tower.image_processor.crop_size["height"] == 336


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"s2_scales": "112,200"}, "s2_scales is '112,200'; it must list multiples of the first"),
        ({"s2_scales": "large"}, "s2_scales is 'large'; it must list multiples"),
        ({"mm_vision_select_feature": "cls_patch"}, "'cls_patch'; s2 takes 'patch' only"),
        ({"qlip": True}, "s2 and qlip are both on.*--no-qlip"),
    ],
)
def test_what_s2_cannot_do_is_refused_before_the_weights(tmp_path, changes, message):
    (tmp_path / "config.json").write_text(json.dumps(llava_config(**{**S2, **changes})))
    for load in (load_pretrained_model, load_empty_tower):
        with pytest.raises(ValueError, match=rf"config\.json: .*{message}"):
            load(tmp_path)


def test_a_caller_cannot_ask_for_qlip_on_top(folder):
    with pytest.raises(ValueError, match="s2 and qlip are both on"):
        load_pretrained_model(folder, device="cpu", qlip=True)
    assert load_pretrained_model(folder, device="cpu", qlip=False)[1].get_vision_tower().scales == SCALES


def test_scales_of_another_tower_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(llava_config(**{**S2, "s2_scales": None})))
    with pytest.raises(ValueError, match="s2_scales begin with 336, but the tower takes 112 pixels"):
        load_empty_tower(tmp_path)
