"""Geometry "native": an image that needs no detail is what CLIP sees; detail is cut from CLIP's own cells."""

from __future__ import annotations

import math

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from transformers import CLIPImageProcessorPil

from llava.model.builder import load_pretrained_model
from llava.serve.engine import ChatEngine
from llava.serve.engine.params import QLIPOptions
from llava.utils import demo_model_path
from qlip import Leaves, QLIPConfig, extract_patches, interpolate_positions, partition, raster_positions
from qlip.cutting import ImageCutter
from qlip.language_positions import image_span

NATIVE = QLIPConfig(geometry="native", leaf_position="native", max_tokens=None)
UNSPLIT = QLIPConfig(geometry="native", leaf_position="native", alpha=math.inf)
CUTTER = ImageCutter()  # CLIP-L/336: 24 cells of 14 pixels
PHOTOGRAPHS = ("astronaut", "coffee", "rocket", "chelsea", "camera")

sides = st.integers(1, 3000)


def photograph(name: str, size: tuple[int, int] | None = None) -> Image.Image:
    image = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
    return image if size is None else image.resize(size)


@given(sides, sides, st.sampled_from([None, 9, 100, 576, 1152]), st.sampled_from([1, 100, 600, 16384, 10**6]))
@settings(max_examples=100)
def test_the_grid_is_the_native_one_times_a_power_of_two(height, width, max_tokens, max_cells):
    chosen = QLIPConfig(geometry="native", max_tokens=max_tokens, max_cells=max_cells)
    rows, cols = CUTTER.choose_grid(height, width, chosen)
    assert rows * cols <= max_cells
    longest, level = max(rows, cols), max(0, math.ceil(math.log2(max(height, width) / 336)))
    if longest < 24:  # CLIP's own view would exceed the bounds
        assert 24 * max(1, round(24 * min(height, width) / max(height, width))) > min(
            max_cells, max_tokens or max_cells
        )
        return
    cell = longest // 24
    assert longest == 24 * cell
    assert cell & (cell - 1) == 0
    assert min(rows, cols) == cell * max(1, round(24 * min(height, width) / max(height, width)))
    assert cell == 2**level or (cell < 2**level and rows * cols * 4 > max_cells)


@pytest.mark.parametrize("side", [300, 2673])
def test_a_wanted_size_costs_no_level_by_rounding(side):
    """672 / 2673 * 2673 is a little more than 672 in floating point."""
    assert ImageCutter().choose_grid(side, side, QLIPConfig(geometry="native", image_size=672)) == (48, 48)


@pytest.mark.parametrize("size", [(336, 336), (337, 337), (1000, 1000), (640, 427), (50, 1900), (3000, 3000)], ids=str)
def test_a_flat_image_costs_no_more_than_clip_and_has_no_strips_at_its_edges(size):
    leaves = CUTTER.prepare(Image.new("RGB", size, "olive"), NATIVE).leaves
    rows, cols = leaves.grid
    cell = max(rows, cols) // 24
    assert leaves.sizes.unique().tolist() == [cell]
    assert len(leaves) == (rows // cell) * (cols // cell) <= 24 * 24


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_no_leaf_is_larger_than_a_native_cell_and_the_edges_are_cut_by_their_detail(name):
    image = photograph(name)
    pixels = CUTTER.normalise(image, NATIVE)
    leaves = CUTTER.partition(pixels, NATIVE)
    cell = max(leaves.grid) // 24
    assert leaves.sizes.max() == cell
    turned = CUTTER.partition(pixels.rot90(2, (1, 2)), NATIVE)  # no edge is special
    assert sorted(turned.sizes.tolist()) == sorted(leaves.sizes.tolist())


def test_a_budget_below_clips_tokens_merges_cells_and_keeps_the_image_size():
    image = photograph("astronaut")
    full = CUTTER.prepare(image, NATIVE).leaves
    few = CUTTER.prepare(image, QLIPConfig(geometry="native", max_tokens=200)).leaves
    assert few.grid == full.grid
    assert 198 <= len(few) <= 200
    assert few.sizes.max() > max(full.grid) // 24


@pytest.mark.parametrize("image_size", [100, 224, 336, 337, 448, 672, 700])
def test_image_size_chooses_the_power_of_two_alone(image_size):
    """By hand: of an image of 200 x 300 pixels and a native size of 336, so that the longer side is 1.5 times it."""
    halvings = 0 if image_size <= 224 else 1 if image_size <= 448 else 2
    rows, cols = CUTTER.choose_grid(200, 300, QLIPConfig(image_size=image_size, max_tokens=None))
    assert (rows, cols) == (16 * 2**halvings, 24 * 2**halvings)


@pytest.mark.parametrize("size", [(200, 200), (336, 336), (500, 500), (1344, 1344)], ids=str)
def test_the_patches_of_an_unsplit_tree_are_those_of_clips_processor(size):
    image = photograph("astronaut", size)
    clip = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    expected = torch.from_numpy(clip.preprocess(image)["pixel_values"][0])
    cut = CUTTER.prepare(image, UNSPLIT)
    assert len(cut.leaves) == 576
    whole = cut.patches.unflatten(0, (24, 24)).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    torch.testing.assert_close(whole, expected, atol=1e-5, rtol=0)


def test_from_pixels_alone_the_patches_are_those_but_for_rounding_and_clipping_to_whole_levels():
    image = photograph("astronaut", (1344, 1344))
    mixed = QLIPConfig(geometry="native", max_tokens=1200)
    exact = CUTTER.prepare(image, mixed)
    close = CUTTER.cut(CUTTER.normalise(image, mixed), mixed)
    assert torch.equal(exact.leaves.boxes, close.leaves.boxes)
    assert len(exact.leaves.sizes.unique()) == 3
    white, black = CUTTER.to_tensor(Image.new("RGB", (1, 1), "white")), CUTTER.to_tensor(Image.new("RGB", (1, 1)))
    level = 1 / 255 / min(CUTTER.std)
    assert (
        exact.patches - close.patches.clamp(black, white)
    ).abs().max() < 2.5 * level  # Pillow rounds twice, after rows and after columns


@pytest.fixture(scope="module")
def engine() -> ChatEngine:
    return ChatEngine(*load_pretrained_model(demo_model_path(), device="cpu"))


def logits(engine: ChatEngine, image: Image.Image, chosen: QLIPConfig | None) -> torch.Tensor:
    """All logits of a prompt about an image."""
    from llava.eval.run.generate import prompt_ids

    tokens = engine.vision.encode([engine.vision.prepare(image, chosen)])
    ids = prompt_ids(engine, "What is in the picture?").unsqueeze(0)
    with torch.inference_mode():
        return engine.model(input_ids=ids, images=tokens).logits


BIASED = {"size_bias": 1.0, "llm_size_bias": 1.0, "llm_weight": "native"}


@pytest.mark.parametrize(("side", "bias"), [(90, {}), (448, {}), (112, BIASED), (300, BIASED), (1000, BIASED)], ids=str)
def test_an_unsplit_tree_of_any_square_image_gives_clips_logits(engine, side, bias):
    image = photograph("astronaut", (side, side))
    chosen = QLIPConfig(geometry="native", leaf_position="native", alpha=math.inf, **bias)
    clip = engine.vision.settings(QLIPOptions(enabled=False))
    torch.testing.assert_close(logits(engine, image, chosen), logits(engine, image, clip), atol=1e-4, rtol=0)


def test_an_oblong_image_lies_where_llava_pads_it():
    image = photograph("coffee", (672, 336))
    leaves = CUTTER.prepare(image, UNSPLIT).leaves
    assert len(leaves) == 24 * 12
    table = torch.randn(576, 8, generator=torch.Generator().manual_seed(0))
    padded = interpolate_positions(table, leaves, leaf_position="native", placement="padded")
    assert torch.equal(padded, table[6 * 24 : 18 * 24])
    assert torch.equal(raster_positions(leaves, 24, "padded"), torch.arange(6 * 24.0, 18 * 24))
    span = image_span(QLIPConfig(geometry="native", placement="padded", alpha=math.inf), leaves, 24)
    assert (span.count, span.length, span.sizes) == (288, 576, None)  # the text follows where it does in LLaVA


def test_an_oblong_images_patches_are_those_of_the_padded_square_inside_its_rim():
    image = photograph("coffee", (672, 336))
    square = ImageOps.pad(image, (672, 672), color=(122, 116, 104))
    clip = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    expected = torch.from_numpy(clip.preprocess(square)["pixel_values"][0])[:, 84:252]
    cut = CUTTER.prepare(image, UNSPLIT)
    whole = cut.patches.unflatten(0, (12, 24)).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    torch.testing.assert_close(whole[:, 4:-4], expected[:, 4:-4], atol=1e-5, rtol=0)
    assert (whole - expected).abs().max() > 0.1  # at the rim the padding shows through in CLIP's


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 30), st.sampled_from(["whole", "padded"]))
@settings(max_examples=100)
def test_native_positions_are_those_of_the_formula(rows, cols, n, placement):
    """DESIGN's formula for points, then bilinear weights, entry by entry."""
    leaves = Leaves.uniform((rows, cols))
    table = torch.randn(n * n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).float()
    found = interpolate_positions(table, leaves, "bilinear", leaf_position="native", placement=placement)
    longest = max(rows, cols)
    sides = (rows, cols) if placement == "whole" else (longest, longest)
    for index in {0, len(leaves) // 2, len(leaves) - 1}:
        row, col, size = leaves.boxes[index].tolist()
        points = [
            min(max((place + size / 2 + (side - own) / 2) / side * n - 0.5, 0), n - 1)
            for place, side, own in ((row, sides[0], rows), (col, sides[1], cols))
        ]
        (top, left), value = (math.floor(point) for point in points), np.zeros(3)
        for i, j in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
            weight = (1 - abs(points[0] - i)) * (1 - abs(points[1] - j))
            value += weight * table[min(i, n - 1) * n + min(j, n - 1)].double().numpy()
        np.testing.assert_allclose(found[index].numpy(), value, atol=1e-5)


def test_sizes_for_the_bias_are_counted_in_native_cells():
    leaves = Leaves(torch.tensor([[0, 0, 2], [0, 2, 1], [0, 3, 1], [1, 2, 1], [1, 3, 1], [2, 0, 2], [2, 2, 2]]), (4, 4))
    span = image_span(QLIPConfig(geometry="native", llm_size_bias=-0.5), leaves, 2)
    assert span.sizes is not None
    expected = torch.tensor([1.0, 0.5, 0.5, 0.5, 0.5, 1.0, 1.0]) ** -0.5  # a leaf of two cells is one native cell
    torch.testing.assert_close(span.sizes, expected)


def test_it_is_partition_under_a_largest_leaf():
    image = CUTTER.normalise(photograph("coffee"), NATIVE)
    cell = max(image.shape[1:]) // 14 // 24
    ours = partition(image, max_tokens=None, geometry="native")
    assert torch.equal(ours.boxes, partition(image, max_tokens=None, max_leaf=cell).boxes)


def test_leaves_that_start_between_multiples_of_their_side_are_cut_as_with_the_grid_and_others_from_their_level():
    """Centred blocks are not all aligned with the levels of the resized image, which Pillow resizes here."""
    settings = QLIPConfig(layout="centered", coarsest="any", max_tokens=None)
    assert settings.geometry == "native"
    image, cutter = photograph("coffee").resize((448, 280)), ImageCutter(native_size=112)
    cut = cutter.prepare(image, settings)  # 20 x 32 cells: blocks of 4 begin at row 2
    assert int((cut.leaves.sizes**2).sum()) == math.prod(cut.leaves.grid)
    by_grid = extract_patches(cutter.normalise(image, settings), cut.leaves)
    kinds, (rows, cols) = {True: 0, False: 0}, cut.leaves.grid
    for (row, col, size), patch, plain in zip(cut.leaves.boxes.tolist(), cut.patches, by_grid, strict=True):
        if is_aligned := row % size == col % size == 0:
            down, across = rows // size, cols // size
            box = (0, 0, image.width * across * size / cols, image.height * down * size / rows)
            level = cutter.to_tensor(image.resize((across * 14, down * 14), Image.Resampling.BICUBIC, box=box))
            expected = level[:, row // size * 14 :, col // size * 14 :][:, :14, :14]
            assert ((patch - expected).abs() > 1e-5).float().mean() < 0.01  # Pillow rounds a border now and then
        else:
            torch.testing.assert_close(patch, plain)
        kinds[is_aligned] += size > 1
    assert min(kinds.values()) > 2


def test_a_stretched_thumbnail_is_refused_where_the_leaves_lie_in_the_padded_square():
    with pytest.raises(ValueError, match="placement is 'padded' and thumbnail is true, but a thumbnail fills"):
        QLIPConfig(placement="padded", thumbnail=True)


def test_from_pixels_alone_the_last_whole_blocks_see_what_lies_beside_them():
    """18 x 24 cells in blocks of four: two rows of cells are left over, which are white, as is the edge beside them."""
    pixels = np.zeros((252, 336, 3), np.uint8)
    pixels[16 * 14 :] = 255
    picture, settings = Image.fromarray(pixels), QLIPConfig(alpha=math.inf, max_tokens=100)
    prepared = CUTTER.prepare(picture, settings)
    assert prepared.leaves.grid == (18, 24) and prepared.leaves.sizes.max() == 4
    cut = CUTTER.cut(CUTTER.normalise(picture, settings), settings, prepared.leaves)
    assert (prepared.patches - cut.patches).abs().max() < 0.05
