"""The image processor that `attach` makes for LLaVA-NeXT without one of the model's own is saved with its tiles."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import qlip
from qlip.integrations.next_tiles import NextImageProcessor
from tests.qlip.integrations.models import NATIVE, PINPOINTS, attached, make_language_model, make_vision_model, picture

PICTURES = [picture(70, 130, 1), picture(150, 60, 2)]


@torch.no_grad()
def test_it_is_loaded_with_its_tiles(tmp_path: Path):
    model, processor = qlip.attach(make_language_model("llava_next"), alpha=0.5)
    processor.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert written["tiles"] == {"pinpoints": PINPOINTS, "side": NATIVE, "native_grid": NATIVE // 14}
    loaded = NextImageProcessor.from_pretrained(tmp_path)
    packed, expected = loaded.pack(PICTURES), processor.pack(PICTURES)
    assert packed.keys() == expected.keys() and all(torch.equal(packed[name], expected[name]) for name in expected)
    counts = loaded.count_placeholders(packed)
    assert counts == [len(features) for features in model.get_image_features(**packed).pooler_output]
    changed, unused = NextImageProcessor.from_pretrained(tmp_path, qlip={"alpha": 0}, return_unused_kwargs=True)
    assert changed.qlip.alpha == 0 and changed.tiles == loaded.tiles and unused == {}


def test_each_class_refuses_the_others_file_and_names_the_right_one(tmp_path: Path):
    _, processor = qlip.attach(make_language_model("llava_next"))
    processor.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"load it by qlip\.integrations\.next_tiles\.NextImageProcessor\.from_pretrained"
    ):
        qlip.QLIPImageProcessor.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="tiling is 'tiles', which the model's own processor makes; give that to"):
        NextImageProcessor.from_pretrained(tmp_path, qlip={"tiling": "tiles"})
    qlip.attach(make_vision_model("clip"))[1].save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no 'tiles': .*; load it by qlip\.QLIPImageProcessor\.from_pretrained"):
        NextImageProcessor.from_pretrained(tmp_path)


def test_where_the_model_has_its_own_that_is_saved(tmp_path: Path):
    attached("llava_next", tiling="tiles")[1].image_processor.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert written["image_processor_type"].startswith("LlavaNextImageProcessor") and "tiles" not in written
