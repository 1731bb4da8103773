"""torch.compile around a tower and an attached model: the results of the same model run as it is."""

from __future__ import annotations

import pytest
import torch

import qlip
from qlip import QLIPConfig, QLIPVisionModel
from tests.qlip.integrations.models import PICTURES, TREE, make_vision_model
from tests.qlip.towers import make_tower

BACKEND = "eager"  # Dynamo traces the Python code for every backend; only this one then compiles nothing


@pytest.mark.parametrize("more", [{"thumbnail": True}, {"keep_split_cells": True}], ids=str)
@torch.no_grad()
def test_a_compiled_tower_cuts_and_encodes_images_as_before(more):
    tower = QLIPVisionModel(make_tower("clip"), QLIPConfig(**TREE, **more))
    images = [torch.rand(3, height, 112, generator=torch.Generator().manual_seed(height)) for height in (56, 112)]
    expected = tower(images)
    assert len({len(tree) for tree in expected.leaves}) == 2
    output = torch.compile(tower, backend=BACKEND)(images)
    for ours, theirs in zip(output.features, expected.features, strict=True):
        torch.testing.assert_close(ours, theirs)


@torch.no_grad()
def test_a_compiled_attached_model_cuts_whole_images_as_before():
    model, processor = qlip.attach(make_vision_model("clip", num_hidden_layers=2), **TREE)
    images = processor(PICTURES[:2], return_tensors="pt")["pixel_values"]
    expected = model(images).last_hidden_state
    torch.testing.assert_close(torch.compile(model, backend=BACKEND)(images).last_hidden_state, expected)
