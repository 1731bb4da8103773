"""A tower whose layers are compiled gives the features of the plain one, for images of several sizes."""

from __future__ import annotations

import shutil

import pytest
import torch

from llava.model.builder import load_pretrained_model
from tests.gpu.cases import BIASED, error
from tests.llava.model.prompts import IMAGES


@pytest.mark.skipif(shutil.which("cc") is None and shutil.which("gcc") is None, reason="there is no C compiler")
@pytest.mark.parametrize("qlip", [False, BIASED], ids=["clip", "qlip"])
@torch.no_grad()
def test_a_compiled_tower_gives_the_same_features(folder, device, qlip):
    """Layer by layer, as models of equal layers are compiled: one graph serves all of them and any number of leaves."""
    dtype = torch.float16 if device == "cuda" else torch.float32
    tower = load_pretrained_model(str(folder), device=device, torch_dtype=dtype, qlip=qlip)[1].get_vision_tower()
    images = [image.to(device) for image in ([IMAGES[0], IMAGES[3]] if qlip else [IMAGES[0], IMAGES[0].flip(2)])]
    plain = [tower.encode_tokens([image])[0].features for image in images]
    for layer in tower.vision_tower.encoder.layers:
        layer.compile(dynamic=bool(qlip))
    for image, expected in zip(images, plain, strict=True):
        found = tower.encode_tokens([image])[0].features
        assert found.shape == expected.shape
        assert error(found, expected) < (1e-4 if dtype == torch.float32 else 1e-2)
