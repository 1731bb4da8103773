"""A quadtree's biases are those of a tower under the quadtree's settings, whatever the tower's own are."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from qlip import QLIPConfig, QLIPImageProcessor, QLIPVisionModel
from qlip.tools.bias import measure
from qlip.tools.bias_config import BiasConfig
from tests.qlip.tools.test_bias import NATIVE, picture, vision_model

TREE = QLIPConfig(criterion="gradient", coarsest="any", alpha=math.inf, geometry="grid", leaf_position="centre")
PICTURE = picture(112, 154)
SIZE = 112  # the picture's own, so that nothing is resized


def measured(settings: QLIPConfig, own: QLIPConfig | None = None) -> tuple[float, float, float]:
    """Tokens, mesoscopic and interpolation bias of the quadtree, by a tower whose `own` settings are others."""
    model = QLIPVisionModel(vision_model(), own)
    config = BiasConfig(sizes=(SIZE,), shapes=("native",), modes=("bilinear",), quadtree=settings)
    rows = [row for row in measure(model, QLIPImageProcessor(), [PICTURE], config) if row.tiling == "quadtree"]
    found = {row.measure: row.mean for row in rows}
    return rows[0].tokens, found["mesoscopic"], found["interpolation"]


def references() -> tuple[Tensor, Tensor]:
    """E at the native size without and with positions, by transformers' own model."""
    native = QLIPImageProcessor(native_size=NATIVE, qlip=QLIPConfig.paper(image_size=NATIVE))
    image = native.preprocess(PICTURE, return_tensors="pt")["pixel_values"]
    rows, cols = image.shape[2] // 14, image.shape[3] // 14
    bare, table = (own_model((rows, cols)) for _ in range(2))
    bare.embeddings.position_embedding.weight.zero_()
    place(table, F.interpolate(read_table(), (rows, cols), mode="bicubic", align_corners=True))
    return bare(image).pooler_output[0], table(image).pooler_output[0]


def own_model(grid: tuple[int, int]):
    """transformers' model for images of a grid, whose table has one row for each cell."""
    model = vision_model(image_size=NATIVE)
    embeddings = model.embeddings
    embeddings.interpolate_pos_encoding = lambda tokens, height, width: embeddings.position_embedding.weight[None]
    wide = torch.nn.Embedding(1 + grid[0] * grid[1], 16)
    embeddings.position_embedding = wide.requires_grad_(False)
    forward = model.forward
    model.forward = lambda image: forward(image, interpolate_pos_encoding=True)
    return model


def read_table() -> Tensor:
    """(1, D, n, n): the pretrained table, without [CLS]."""
    return vision_model().embeddings.position_embedding.weight[1:].T.reshape(1, 16, 4, 4)


def place(model, table: Tensor) -> None:
    """Writes [CLS]'s row and a table (1, D, rows, cols) into the model's own."""
    cls = vision_model().embeddings.position_embedding.weight[:1]
    model.embeddings.position_embedding.weight.copy_(torch.cat([cls, table[0].flatten(1).T]))


def cosine_gradient(embed, positions: Tensor, reference: Tensor) -> float:
    positions = positions.detach().requires_grad_()
    with torch.enable_grad():
        cosine = F.cosine_similarity(embed(positions), reference, dim=0)
        return float(torch.autograd.grad(cosine, positions)[0].norm())


@pytest.mark.parametrize(("leaf_position", "corners"), [("centre", True), ("native", False)])
@torch.no_grad()
def test_positions_are_laid_as_the_settings_say(leaf_position, corners):
    """On the uniform grid: as PyTorch resizes a table corner to corner, or by the centres of its cells."""
    settings = replace(TREE, alpha=0.0, leaf_position=leaf_position, max_tokens=None)
    image = QLIPImageProcessor().cutter.to_tensor(PICTURE)[None]
    bare, reference = references()
    theirs = own_model((8, 11))
    theirs.embeddings.position_embedding.weight.zero_()
    mesoscopic = F.cosine_similarity(theirs(image).pooler_output[0], bare, dim=0)
    place(theirs, F.interpolate(read_table(), (8, 11), mode="bilinear", align_corners=corners))
    cls, placed = theirs.embeddings.position_embedding.weight.clone().split([1, 88])

    def embed(positions: Tensor) -> Tensor:
        embeddings = theirs.embeddings
        embeddings.interpolate_pos_encoding = lambda *_: torch.cat([cls, positions])[None]
        return theirs(image).pooler_output[0]

    expected = 88, float(mesoscopic), cosine_gradient(embed, placed, reference)
    assert measured(settings) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"geometry": "native"},
        {"size_bias": 2.0},
        {"leaf_position": "native"},
        {"leaf_position": "native", "placement": "padded"},
    ],
    ids=str,
)
@torch.no_grad()
def test_a_quadtree_is_encoded_as_a_tower_of_its_settings_encodes_it(changes):
    settings = replace(TREE, interpolation="bilinear", **changes)
    own = QLIPVisionModel(vision_model(), settings)
    image = QLIPImageProcessor().cutter.to_tensor(PICTURE)
    leaves = own.partition(image)
    bare, reference = references()

    def embed(positions: Tensor) -> Tensor:
        return own.encode([image], [leaves], [positions], pool=True).pooled[0]

    placed = own.positions(leaves)
    mesoscopic = F.cosine_similarity(embed(torch.zeros_like(placed)), bare, dim=0)
    cls, placed = placed.split([1, len(leaves)])
    norm = cosine_gradient(lambda positions: embed(torch.cat([cls, positions])), placed, reference)
    expected = len(leaves), float(mesoscopic), norm
    assert measured(settings) == pytest.approx(expected, rel=1e-4)
    assert measured(settings, QLIPConfig(size_bias=1.0, interpolation="bicubic")) == measured(settings)
    assert not changes or measured(TREE) != pytest.approx(expected, rel=1e-3)


def test_split_cells_are_refused_and_a_thumbnail_is_not_read():
    with pytest.raises(ValueError, match="keep_split_cells is true.*; set it to false"):
        BiasConfig(quadtree=replace(TREE, keep_split_cells=True))
    assert measured(replace(TREE, thumbnail=True)) == measured(TREE)
