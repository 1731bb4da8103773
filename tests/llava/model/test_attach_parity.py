"""The same checkpoint through llava and through qlip.attach on transformers' own model: the same answers."""

from __future__ import annotations

import pytest
import torch

import qlip
from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.builder import load_pretrained_model
from llava.model.vision.prepared_image import prepare_leaves
from tests.llava.checkpoints import IMAGE_TOKEN, make_llava_checkpoint, transformers_model
from tests.qlip.integrations.models import picture

TREE = {"criterion": "gradient", "coarsest": "any", "alpha": 0.5, "max_tokens": 90}
SETTINGS = {
    "defaults": {},
    "the paper's geometry": {**TREE, "geometry": "grid", "leaf_position": "centre"},
    "raster": TREE,
    "sequential": {**TREE, "llm_positions": "sequential", "llm_size_bias": 0.0},
    "native weight": {**TREE, "llm_weight": "native", "size_bias": 0.5},
    "thumbnail": {**TREE, "thumbnail": True},
}
ROWS = [[1, 20, IMAGE_TOKEN_INDEX, 30], [1, IMAGE_TOKEN_INDEX, 40, 41, IMAGE_TOKEN_INDEX], [1, 50, 51, 52]]
PICTURES = [picture(112, 112, 1), picture(224, 140, 2), picture(130, 336, 3)]
GREEDY = {"do_sample": False, "max_new_tokens": 4, "min_new_tokens": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_llava_checkpoint(tmp_path_factory.mktemp("llava"))


def padded(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    ids = [torch.tensor(row) for row in rows]
    ones = [torch.ones_like(row) for row in ids]
    ids, mask = (torch.nn.utils.rnn.pad_sequence(x, True, 0, "left") for x in (ids, ones))
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
@torch.no_grad()
def test_llava_and_attach_agree(folder, settings):
    _, ours, processor, _ = load_pretrained_model(str(folder), device="cpu", qlip=settings)
    tower = ours.get_vision_tower()
    images = [prepare_leaves(image, processor.cutter, tower.settings).image for image in PICTURES]
    logits = [
        ours(torch.tensor([row]), images=own or None).logits[0]
        for row, own in zip(ROWS, ([images[0]], images[1:], []), strict=True)
    ]
    answers = ours.generate(**padded(ROWS), images=images, **GREEDY)

    theirs, _ = qlip.attach(transformers_model(), **settings)
    packed = theirs.attachment.image_processor.pack(PICTURES)
    counts = iter(theirs.attachment.image_processor.count_tokens(packed["leaf_boxes"]))
    long = [
        [token for i in row for token in ([IMAGE_TOKEN] * next(counts) if i == IMAGE_TOKEN_INDEX else [i])]
        for row in ROWS
    ]
    inputs = {**padded(long), **packed}
    got = theirs(**inputs).logits
    for row, expected in zip(got, logits, strict=True):
        torch.testing.assert_close(row[-len(expected) :], expected, atol=1e-4, rtol=0)
    assert torch.equal(theirs.generate(**inputs, **GREEDY)[:, inputs["input_ids"].shape[1] :], answers)
