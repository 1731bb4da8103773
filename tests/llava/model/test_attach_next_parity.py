"""A LLaVA-1.6 checkpoint through llava and through qlip.attach on transformers' LlavaNext: the same logits."""

from __future__ import annotations

import pytest
import torch
from transformers import LlavaNextImageProcessorPil, LlavaNextProcessor

import qlip
from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.builder import load_pretrained_model
from llava.model.vision.encoding import encode_prepared
from llava.model.vision.prepared_image import prepare_leaves
from tests.llava.checkpoints import IMAGE_TOKEN
from tests.llava.next_checkpoints import PINPOINTS, SIDE, make_next_checkpoint, next_model
from tests.qlip.integrations.models import make_tokenizer, picture

SETTINGS = {
    "image": {"alpha": 0.5, "max_tokens": 120},
    "base": {"alpha": 0.5, "max_tokens": 120, "thumbnail": True, "llm_weight": "native"},
    "sequential": {"alpha": 0.5, "llm_positions": "sequential"},
    "tiles": {"alpha": 0.5, "tiling": "tiles"},
}
PICTURES = [picture(120, 300, 1), picture(400, 90, 2), picture(240, 320, 3)]


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    folder = make_next_checkpoint(tmp_path_factory.mktemp("next"))
    return load_pretrained_model(str(folder), device="cpu", qlip=True)[1]


@pytest.fixture(scope="module")
def theirs():
    return next_model()


@pytest.mark.parametrize("name", SETTINGS)
@torch.no_grad()
def test_llava_and_attach_agree(ours, theirs, name):
    tower = ours.get_vision_tower()
    tower.settings = settings = qlip.QLIPConfig(**SETTINGS[name])
    cutter = tower.image_processor.cutter
    square = {"height": SIDE, "width": SIDE}
    plain = LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size=square, image_grid_pinpoints=[pair[::-1] for pair in PINPOINTS]
    )
    attached, processor = qlip.attach(theirs, LlavaNextProcessor(plain, make_tokenizer(), patch_size=14), settings)
    images = processor.image_processor
    for image in PICTURES:
        ready = prepare_leaves(image, cutter, settings, ours.config, tower.input_size)
        row = [1, 20, IMAGE_TOKEN_INDEX, 30, 31]
        expected = ours(torch.tensor([row]), images=encode_prepared(ours, [ready])).logits
        packed = images.pack([image])
        (count,) = images.count_placeholders(packed)
        ids = torch.tensor([[1, 20, *[IMAGE_TOKEN] * count, 30, 31]])
        got = attached(input_ids=ids, **packed).logits
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
