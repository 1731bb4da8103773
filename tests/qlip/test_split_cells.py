"""Split cells in the tower's sequence: which they are, their pixels, and what they keep as CLIP sees it."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPVisionConfig, CLIPVisionModel, Dinov2Config, Dinov2Model

from qlip import Leaves, QLIPConfig, QLIPVisionModel
from qlip.patches import CutImage, extract_patches
from qlip.split_cells import find_split_cells, hide_tokens, join_patches

NATIVE = QLIPConfig(max_tokens=None, keep_split_cells=True)
GRID = dataclasses.replace(NATIVE, geometry="grid")
N = 4
"""Cells per side of the towers' native grid."""
P = 14


def tree(splits: set[tuple[int, int, int]], side: int, cell: int) -> Leaves:
    """A square grid of `side` cells whose native cells, of `cell`, and blocks in them split where named."""

    def descend(row: int, col: int, size: int) -> list[tuple[int, int, int]]:
        if (row, col, size) not in splits:
            return [(row, col, size)]
        half = size // 2
        return [leaf for down in (0, half) for across in (0, half) for leaf in descend(row + down, col + across, half)]

    boxes = [leaf for row in range(0, side, cell) for col in range(0, side, cell) for leaf in descend(row, col, cell)]
    return Leaves(torch.tensor(sorted(boxes)), (side, side))


def random_tree(seed: int, side: int, cell: int) -> Leaves:
    drawn = torch.rand(3, side, side, generator=torch.Generator().manual_seed(seed))
    chosen = {(r, c, 2**k) for k in (1, 2) for r in range(side) for c in range(side) if drawn[k, r, c] < 0.4}
    return tree(chosen, side, cell)


def test_cells_that_smaller_leaves_tile_are_found_by_hand():
    leaves = tree({(0, 4, 4), (4, 8, 4), (4, 8, 2)}, 16, 4)
    split = find_split_cells(leaves, NATIVE, N)
    assert split.cells.boxes.tolist() == [[0, 4, 4], [4, 8, 4]]
    sizes = leaves.boxes[split.parts]
    assert sorted(map(tuple, sizes.tolist())) == sorted(
        [(r, c, 2) for r in (0, 2) for c in (4, 6)]
        + [(r, c, 1) for r in (4, 5) for c in (8, 9)]
        + [(4, 10, 2), (6, 8, 2), (6, 10, 2)]
    )


def test_a_part_of_a_cell_at_the_edge_is_none_and_roots_may_begin_inside():
    leaves = Leaves.uniform((9, 9))
    aligned = find_split_cells(leaves, GRID, N)
    assert aligned.cells.boxes[:, :2].amax() == 6 and len(aligned.cells) == 16 and len(aligned.parts) == 64
    settings = dataclasses.replace(GRID, layout="centered")
    inside = find_split_cells(Leaves.uniform((11, 11)), settings, 2)  # a region of 8 cells from 1 on, of cells of 4
    assert inside.cells.boxes.tolist() == [[1, 1, 4], [1, 5, 4], [5, 1, 4], [5, 5, 4]]


def test_pixels_of_a_cell_are_its_leaves_halved_as_torch_resizes():
    image = torch.randn(3, 8 * P, 8 * P, generator=torch.Generator().manual_seed(0))
    leaves = Leaves.uniform((8, 8))
    cut = CutImage(leaves, extract_patches(image, leaves, P))
    split = find_split_cells(leaves, GRID, N)
    blocks = image.unflatten(1, (N, 2 * P)).unflatten(3, (N, 2 * P)).permute(1, 3, 0, 2, 4).flatten(0, 1)
    expected = F.interpolate(blocks, (P, P), mode="bicubic", antialias=True)
    torch.testing.assert_close(join_patches(cut, split), expected, atol=1e-5, rtol=0)


@settings(max_examples=30)
@given(st.integers(0, 2**16))
def test_a_cell_of_one_colour_keeps_it_however_it_is_split(seed):
    leaves = random_tree(seed, 16, 4)
    split = find_split_cells(leaves, NATIVE, N)
    colour = torch.arange(16.0).view(4, 4)  # of each native cell, in raster order
    own = colour[leaves.boxes[:, 0] // 4, leaves.boxes[:, 1] // 4]
    joined = join_patches(CutImage(leaves, own.view(-1, 1, 1, 1).expand(-1, 3, P, P)), split)
    expected = colour[split.cells.boxes[:, 0] // 4, split.cells.boxes[:, 1] // 4]
    torch.testing.assert_close(joined, expected.view(-1, 1, 1, 1).expand_as(joined), atol=1e-4, rtol=0)


def test_who_attends_to_whom():
    """[CLS], two cells, the four leaves of a third, padding; that third cell comes last."""
    leaves = Leaves(torch.tensor([[0, 0, 2], [0, 2, 2], [2, 0, 1], [2, 1, 1], [3, 0, 1], [3, 1, 1]]), (4, 4))
    split = find_split_cells(leaves, GRID, 2)
    whole = find_split_cells(Leaves(leaves.boxes[:2], (4, 4)), GRID, 2)
    mask = hide_tokens(None, [split, whole], [7, 3], 1, torch.zeros(2, 8, 1))
    seen = (mask[:, 0] == 0).int().tolist()
    cell, leaf = [1, 1, 1, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 1, 1, 0]
    assert seen[0] == [cell, cell, cell, leaf, leaf, leaf, leaf, cell]
    assert seen[1] == [[1] * 8] * 8
    assert hide_tokens(None, [whole], [3], 1, torch.zeros(1, 3, 1)) is None


SHAPE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": N * P, "patch_size": P}


def tower(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    made = {
        "clip": lambda: CLIPVisionModel(CLIPVisionConfig(**SHAPE, intermediate_size=64)),
        "dinov2": lambda: Dinov2Model(Dinov2Config(**SHAPE)),
    }
    model = made[kind]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


def coloured(leaves: Leaves, seed: int) -> tuple[CutImage, torch.Tensor]:
    """An image whose native cells have one colour each: cut into leaves, and its pixels at the native size."""
    colours = torch.randn(1, 3, N, N, generator=torch.Generator().manual_seed(seed))
    own = colours[0, :, leaves.boxes[:, 0] // 4, leaves.boxes[:, 1] // 4].T
    return CutImage(leaves, own[..., None, None].expand(-1, -1, P, P)), F.interpolate(colours, scale_factor=P)


@pytest.mark.parametrize("kind", ["clip", "dinov2"])
@pytest.mark.parametrize("bias", [0.0, -0.4])
@torch.no_grad()
def test_what_is_not_split_is_seen_as_transformers_own_model_sees_it(kind, bias):
    """Whatever is split elsewhere; alone and in a batch. Without split cells it is not."""
    vision, trees = tower(kind), [random_tree(seed, 16, 4) for seed in range(3)]
    cuts, natives = zip(*(coloured(leaves, seed) for seed, leaves in enumerate(trees)), strict=True)
    model = QLIPVisionModel(vision, dataclasses.replace(NATIVE, size_bias=bias))
    without = dataclasses.replace(model.qlip, keep_split_cells=False)
    together = model.encode_cut(cuts).features
    lengths = [1 + len(leaves) for leaves in trees]
    assert model.hidden_states(cuts, (0,)).valid.sum(1).tolist() == lengths and len(set(lengths)) > 1
    for cut, native, features in zip(cuts, natives, together, strict=True):
        (row, col, size), clip = cut.leaves.boxes.T, vision(native, output_hidden_states=True).hidden_states[-2][0, 1:]
        whole, expected = size == 4, clip[row // 4 * N + col // 4]
        assert 0 < whole.sum() < N * N
        torch.testing.assert_close(features[whole], expected[whole], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(model.encode_cut([cut]).features[0], features, atol=1e-5, rtol=1e-5)
        other = model.encode_cut([cut], settings=without).features[0]
        assert (other - expected)[whole].abs().max() > 0.01


@torch.no_grad()
def test_a_pooled_output_of_cls_which_would_see_no_leaf_is_refused():
    (cut, _), settings = coloured(random_tree(0, 16, 4), 0), dataclasses.replace(NATIVE, keep_split_cells=False)
    model = QLIPVisionModel(tower("clip"), NATIVE)
    with pytest.raises(ValueError, match=r"keep_split_cells is set, so that \[CLS\] sees no leaf"):
        model.encode_cut([cut], pool=True)
    assert model.encode_cut([cut], pool=True, settings=settings).pooled.shape == (1, 32)


@pytest.mark.parametrize("layout", ["aligned", "centered"])
@torch.no_grad()
def test_images_of_any_size_are_the_same_in_any_batch(layout):
    sizes = [(4, 4), (11, 8), (9, 21)]
    images = [torch.randn(3, P * rows, P * cols, generator=torch.Generator().manual_seed(cols)) for rows, cols in sizes]
    settings = dataclasses.replace(GRID, layout=layout, criterion="random", alpha=0.3, size_bias=-0.4)
    model = QLIPVisionModel(tower("clip"), settings)
    for image, features in zip(images, model(images).features, strict=True):
        torch.testing.assert_close(model([image]).features[0], features, atol=1e-5, rtol=1e-5)


def test_gradients_reach_the_pixels_of_cells_that_are_split_elsewhere():
    image = torch.randn(3, 16 * P, 16 * P, generator=torch.Generator().manual_seed(0)).requires_grad_()
    model, leaves = QLIPVisionModel(tower("clip"), GRID), tree({(0, 0, 4), (0, 0, 2)}, 16, 4)
    features = model.encode([image], [leaves], [model.positions(leaves)]).features[0]
    features[leaves.sizes == 4].sum().backward()  # these attend to the split cell, and to no leaf in it
    assert image.grad is not None and image.grad[:, : 4 * P, : 4 * P].abs().max() > 0


@torch.no_grad()
def test_an_image_that_is_not_split_is_encoded_as_without():
    vision, image = tower("clip"), torch.randn(3, 16 * P, 16 * P, generator=torch.Generator().manual_seed(0))
    kept, plain = (QLIPConfig(alpha=math.inf, keep_split_cells=keeps) for keeps in (True, False))
    assert torch.equal(*(QLIPVisionModel(vision, each)([image]).features[0] for each in (kept, plain)))
