"""LLaVA-1.6's tiles: how many tokens they are, how they are joined, and what is refused."""

from __future__ import annotations

from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F
from transformers.models.llava_next.modeling_llava_next import unpad_image as theirs
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

from llava.image_geometry import read_pinpoints, select_best_resolution
from llava.mm_utils import unpad_image
from llava.model.vision.anyres import TileLayout, plan_tiles

PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
TABLE = [
    ((200, 200), (336, 672), 2, 1176, 1728),
    ((336, 336), (336, 672), 2, 1176, 1728),
    ((448, 448), (672, 672), 4, 2928, 2880),
    ((672, 672), (672, 672), 4, 2928, 2880),
    ((1000, 1000), (672, 672), 4, 2928, 2880),
    ((640, 480), (672, 672), 4, 2340, 2880),
    ((1024, 768), (672, 672), 4, 2340, 2880),
    ((480, 640), (672, 672), 4, 2352, 2880),
    ((1920, 1080), (672, 672), 4, 1948, 2880),
    ((1080, 1920), (672, 672), 4, 1968, 2880),
    ((1000, 500), (672, 336), 2, 1752, 1728),
    ((500, 1000), (336, 672), 2, 1776, 1728),
    ((1500, 500), (1008, 336), 3, 2328, 2304),
    ((500, 1500), (336, 1008), 3, 2376, 2304),
    ((2000, 400), (1008, 336), 3, 1598, 2304),
]
"""(width, height), resolution, tiles, tokens of spatial_unpad and spatial, from LLaVA's own code with ViT-L/14-336."""


def config(merge: str = "spatial_unpad", ratio: str = "anyres", pinpoints: object = PINPOINTS) -> Namespace:
    return Namespace(image_aspect_ratio=ratio, mm_patch_merge_type=merge, image_grid_pinpoints=pinpoints)


@pytest.mark.parametrize(("size", "resolution", "tiles", "unpadded", "spatial"), TABLE)
@torch.no_grad()
def test_an_image_has_as_many_tokens_as_in_llava(size, resolution, tiles, unpadded, spatial):
    assert select_best_resolution(size, read_pinpoints(PINPOINTS)) == resolution
    features = torch.zeros((1 + tiles) * 576, 1)
    for merge, count in (("spatial_unpad", unpadded), ("spatial", spatial)):
        layout = plan_tiles(config(merge), size, 1 + tiles, 336)
        assert layout.count(24) == len(layout.merge(features, torch.zeros(1))) == count
    assert plan_tiles(config("flat"), size, 1 + tiles, 336) is None


def test_the_raster_is_read_row_by_row_and_every_row_ends_with_the_newline():
    """Two by two tiles of 2 x 2 cells, numbered in LLaVA's order: tile by tile, each in raster order."""
    features = torch.arange(20.0)[:, None]
    newline = torch.tensor([-1.0])
    base, raster = [0, 1, 2, 3], [[4, 5, 8, 9], [6, 7, 10, 11], [12, 13, 16, 17], [14, 15, 18, 19]]
    spatial = TileLayout(2, 2, (100, 100), unpad=False).merge(features, None)
    assert spatial[:, 0].tolist() == base + sum(raster, [])
    whole = TileLayout(2, 2, (100, 100), unpad=True).merge(features, newline)
    assert whole[:, 0].tolist() == base + sum(([*row, -1] for row in raster), [])
    wide = TileLayout(2, 2, (100, 50), unpad=True).merge(features, newline)
    assert wide[:, 0].tolist() == base + [*raster[1], -1, *raster[2], -1]
    tall = TileLayout(2, 2, (50, 100), unpad=True).merge(features, newline)
    assert tall[:, 0].tolist() == base + sum(([*row[1:3], -1] for row in raster), [])
    assert TileLayout(0, 0, None, unpad=True).merge(features[:4], newline)[:, 0].tolist() == [0, 1, 2, 3, -1]
    assert TileLayout(0, 0, None, unpad=False).merge(features[:4], None)[:, 0].tolist() == base


def test_padding_is_what_transformers_cuts_off():
    for frame in ((24, 48), (48, 24), (48, 48), (72, 24), (27, 27), (54, 81)):
        cells = torch.arange(frame[0] * frame[1]).view(1, frame[1], frame[0])
        for size in ((1, 900), (7, 5), (37, 200), (336, 336), (500, 333), (640, 480), (1000, 999), (3000, 41)):
            assert torch.equal(unpad_image(cells, size), theirs(cells, size[::-1]))


@pytest.mark.parametrize(("size", "most"), [((900, 900), 9), ((900, 900), 4), ((890, 610), 2), ((640, 480), 1)])
def test_anyres_max_shrinks_the_raster_as_llava_onevision_does(size, most):
    """The oracle is transformers' LLaVA-OneVision, whose rule is LLaVA-NeXT's."""
    pinpoints = [[cols * 28, rows * 28] for cols in range(1, 7) for rows in range(1, 7)]
    oracle = Namespace(
        config=Namespace(
            vision_config=Namespace(image_size=28, patch_size=7),
            image_grid_pinpoints=[[height, width] for width, height in pinpoints],
        )
    )
    width, height = select_best_resolution(size, read_pinpoints(pinpoints))
    tiles = 1 + width * height // 28**2
    features, newline = torch.randn(tiles, 16, 3), torch.randn(3)
    (expected,), _ = LlavaOnevisionModel.pack_image_features(
        oracle, [features], torch.tensor([size[::-1]]), newline, f"anyres_max_{most}"
    )
    layout = plan_tiles(config(ratio=f"anyres_max_{most}", pinpoints="(1x1),...,(6x6)"), size, tiles, 28)
    got = layout.merge(features.flatten(0, 1), newline)
    assert layout.count(4) == len(expected)
    torch.testing.assert_close(got, expected)


def test_a_strip_thinner_than_a_cell_is_its_base_alone():
    layout = plan_tiles(config(), (4000, 10), 4, 336)
    assert layout.count(24) == len(layout.merge(torch.zeros(4 * 576, 2), torch.zeros(2))) == 576


def test_the_newline_and_the_features_get_gradients():
    layout = plan_tiles(config(), (640, 480), 5, 336)
    features, newline = torch.zeros(5 * 576, 2, requires_grad=True), torch.zeros(2, requires_grad=True)
    F.mse_loss(layout.merge(features, newline), torch.ones(2340, 2), reduction="sum").backward()
    assert newline.grad.tolist() == [-2 * 36] * 2
    kept = (features.grad[:, 0] != 0).view(5, 24, 24)
    assert kept[0].all() and int(kept[1:].sum()) == 36 * 48


@pytest.mark.parametrize(
    "pinpoints", [[(28, 56), (56, 28)], ((28, 56), (56, 28)), "[(28, 56), (56, 28)]", "[[28,56],[56,28]]"]
)
def test_pinpoints_are_a_list_or_its_text(pinpoints):
    assert read_pinpoints(pinpoints, 28) == [(28, 56), (56, 28)]


def test_pinpoints_may_count_tiles_from_first_to_last():
    assert read_pinpoints("(1x1),...,(2x3)", 10) == [(10, 10), (10, 20), (10, 30), (20, 10), (20, 20), (20, 30)]


@pytest.mark.parametrize(
    ("pinpoints", "message"),
    [
        (None, "image_grid_pinpoints is None; allowed are a list of"),
        ([], r"image_grid_pinpoints is \[\]; allowed"),
        ("six by six", "image_grid_pinpoints is 'six by six'; allowed"),
        ("(2x2),...,(1x1)", "image_grid_pinpoints is .*; allowed"),
        ("open('x')", "allowed"),
        ([[28]], r"holds \[28\]; allowed"),
        ([28, 56], "holds 28; allowed"),
        ([[28, -28]], r"holds \[28, -28\]; allowed"),
        ([[28, True]], r"holds \[28, True\]; allowed"),
        ([[28, 56.0]], r"holds \[28, 56\.0\]; allowed"),
        ([[28, 40]], r"holds \[28, 40\]; allowed are multiples of a tile's 28 pixels"),
    ],
)
def test_malformed_pinpoints_are_named(pinpoints, message):
    with pytest.raises(ValueError, match=message):
        read_pinpoints(pinpoints, 28)


def test_what_cannot_be_joined_says_why():
    with pytest.raises(ValueError, match="5 tiles, and its size is not known: give image_sizes"):
        plan_tiles(config(), None, 5, 336)
    with pytest.raises(
        ValueError, match=r"640 x 480 pixels \(image_sizes\) has 1 \+ 4 tiles of 336 pixels, but 3 were"
    ):
        plan_tiles(config(), (640, 480), 3, 336)
    with pytest.raises(ValueError, match="image_aspect_ratio is 'pad', it must be 'anyres' or 'anyres_max_N'"):
        plan_tiles(config(ratio="pad"), (640, 480), 5, 336)
    with pytest.raises(ValueError, match="the model has no image_newline"):
        TileLayout(1, 2, (9, 9), unpad=True).merge(torch.zeros(12, 2), None)
