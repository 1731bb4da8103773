"""Mesoscopic and interpolation bias, against transformers' own models and central finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from qlip import CoordinateMLP, Leaves, QLIPConfig, QLIPImageProcessor, QLIPVisionModel
from qlip.tools.bias import (
    default_sizes,
    embed,
    embed_without_positions,
    interpolation_bias,
    measure,
    mesoscopic_bias,
    place_leaves,
)
from qlip.tools.bias_config import BiasConfig

SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14}
KINDS = {"clip": (CLIPVisionModel, CLIPVisionConfig), "siglip": (SiglipVisionModel, SiglipVisionConfig)}
NATIVE = 56  # pixels: 4 x 4 cells
TREE = QLIPConfig(criterion="gradient", coarsest="any", alpha=0.5)


def vision_model(kind: str = "clip", image_size: int = NATIVE):
    """A tiny model with weights so large that attention and positions matter."""
    model_class, config_class = KINDS[kind]
    model = model_class(config_class(**SHAPE, image_size=image_size))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return model.eval()


def tower(kind: str = "clip", dtype: torch.dtype = torch.float32) -> QLIPVisionModel:
    return QLIPVisionModel(vision_model(kind).to(dtype), QLIPConfig(alpha=0.0, max_tokens=None))


def pixels(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(3, height, width, generator=torch.Generator().manual_seed(seed))


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Noise of uneven strength on a flat ground, so that quadtrees are uneven."""
    values = np.full((height, width, 3), 120.0)
    values[: height // 3, : width // 2] += np.random.default_rng(seed).normal(0, 60, (height // 3, width // 2, 3))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def numeric_norm(function, point: torch.Tensor, step: float = 1e-4) -> float:
    """The norm of a function's gradient by central differences, entry by entry."""
    square = 0.0
    for index in range(point.numel()):
        shift = torch.zeros_like(point).flatten()
        shift[index] = step
        shift = shift.view_as(point)
        square += ((function(point + shift) - function(point - shift)) / (2 * step)) ** 2
    return math.sqrt(square)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_interpolation_bias_is_the_norm_that_finite_differences_of_transformers_own_model_give(kind):
    """The oracle is a model built for the other size, with the positions P as its own table."""
    model, image = tower(kind, torch.float64), pixels(28, 28)
    reference = embed(model, pixels(NATIVE, NATIVE, 1), Leaves.uniform((4, 4)), model.positions(Leaves.uniform((4, 4))))
    leaves = Leaves.uniform((2, 2))
    positions = place_leaves(model, leaves, "bicubic").double()
    theirs = vision_model(kind, image_size=28).double()
    states = {name: value for name, value in model.state_dict().items() if "position_embedding" not in name}
    theirs.load_state_dict(states, strict=False)

    def oracle(added: torch.Tensor) -> float:
        theirs.embeddings.position_embedding.weight.copy_(torch.cat([model.cls_position, added]))
        return cosine(theirs(image[None].double()).pooler_output[0], reference)

    ours = interpolation_bias(model, image, leaves, positions, reference)
    assert ours > 1e-3
    assert ours == pytest.approx(numeric_norm(oracle, positions), rel=1e-6)


@torch.no_grad()
def test_interpolation_bias_of_a_quadtree_is_the_norm_that_finite_differences_give():
    model, image = tower(dtype=torch.float64), pixels(28, 56)
    leaves = Leaves(torch.tensor([(0, 0, 2), (0, 2, 1), (0, 3, 1), (1, 2, 1), (1, 3, 1)]), (2, 4))
    reference = torch.randn(16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    positions = place_leaves(model, leaves, "bilinear").double()

    def function(added: torch.Tensor) -> float:
        return cosine(embed(model, image, leaves, torch.cat([model.cls_position, added])), reference)

    ours = interpolation_bias(model, image, leaves, positions, reference)
    assert ours == pytest.approx(numeric_norm(function, positions), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid", [(4, 4), (6, 6), (3, 7)])
@torch.no_grad()
def test_mesoscopic_bias_is_the_cosine_that_transformers_own_model_gives_without_positions(kind, grid):
    model, native, image = tower(kind), pixels(NATIVE, NATIVE), pixels(14 * grid[0], 14 * grid[1], 1)
    theirs = vision_model(kind)
    theirs.embeddings.position_embedding.weight.zero_()
    expected = [theirs(x[None], interpolate_pos_encoding=True).pooler_output[0] for x in (native, image)]
    reference = embed_without_positions(model, native, Leaves.uniform((4, 4)))
    assert mesoscopic_bias(model, image, Leaves.uniform(grid), reference) == pytest.approx(cosine(*expected), abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_measured_model_is_left_as_it_was(kind):
    model = tower(kind).requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure(model, QLIPImageProcessor(), [picture(70, 90)], BiasConfig(sizes=(42,)))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_sizes_are_the_papers_for_its_tower_and_the_same_multiples_for_others():
    assert default_sizes(24, 14) == tuple(224 + 28 * k for k in range(22))
    assert default_sizes(12, 28) == tuple(224 + 28 * k for k in range(22))
    assert default_sizes(8, 14) == tuple(range(70, 267, 14))  # 112 px: 5 to 19 cells
    assert default_sizes(1, 32) == (32, 64)  # rounded to whole cells, each once
    for grid in (7, 14, 16, 27):
        sizes = default_sizes(grid, 16)
        assert list(sizes) == sorted(set(sizes)) and grid * 16 in sizes
        exact = {(224 + 28 * k) / 336 * grid * 16 for k in range(22)}
        assert all(min(abs(size - other) for size in sizes) <= 8 for other in exact)


def rows_by_cell(model: QLIPVisionModel, pictures: list[Image.Image], config: BiasConfig) -> dict:
    rows = measure(model, QLIPImageProcessor(), pictures, config)
    return {(row.measure, row.shape, row.tiling, row.mode, row.size): row for row in rows}


def test_there_is_a_row_for_each_measure_shape_tiling_mode_and_size():
    config = BiasConfig(sizes=(70, 42), quadtree=TREE)
    rows = rows_by_cell(tower(), [picture(60, 90, seed) for seed in range(3)], config)
    assert set(rows) == {
        (kind, shape, tiling, mode, size)
        for kind, modes in (("mesoscopic", (None,)), ("interpolation", ("bilinear", "bicubic")))
        for mode in modes
        for shape in ("native", "cropped")
        for tiling in ("uniform", "quadtree")
        for size in (42, 70)
    }
    for row in rows.values():
        assert row.low <= row.mean + 1e-6 and row.mean <= row.high + 1e-6 and row.count == 3


def test_each_mean_is_that_of_the_pictures_alone():
    model, config = tower(), BiasConfig(sizes=(42,), quadtree=TREE)
    pictures = [picture(60, 90, seed) for seed in range(3)]
    together = rows_by_cell(model, pictures, config)
    alone = [rows_by_cell(model, [one], config) for one in pictures]
    for cell, row in together.items():
        assert row.mean == pytest.approx(np.mean([rows[cell].mean for rows in alone]), abs=1e-6)
        assert row.tokens == np.mean([rows[cell].tokens for rows in alone])


@pytest.mark.parametrize("kind", KINDS)
def test_at_the_native_size_nothing_is_lost_on_the_uniform_grid(kind):
    """Cosine 1, its maximum, so no gradient; in either shape, by the mode that the reference is interpolated with."""
    rows = rows_by_cell(tower(kind), [picture(60, 100)], BiasConfig(sizes=(NATIVE,), modes=("bicubic",)))
    for shape in ("native", "cropped"):
        assert rows["mesoscopic", shape, "uniform", None, NATIVE].mean == pytest.approx(1, abs=1e-5)
        assert rows["interpolation", shape, "uniform", "bicubic", NATIVE].mean == pytest.approx(0, abs=1e-4)


def test_native_shape_keeps_the_aspect_ratio_and_cropped_is_the_central_square():
    model, wide = tower(), picture(60, 180)
    square = wide.crop((60, 0, 120, 60))
    rows = rows_by_cell(model, [wide], BiasConfig(sizes=(84,)))
    of_square = rows_by_cell(model, [square], BiasConfig(sizes=(84,), shapes=("native",)))
    for cell, row in rows.items():
        assert row.tokens == (6 * 18 if row.shape == "native" else 6 * 6)
        if row.shape == "cropped":
            assert row.mean == of_square[(cell[0], "native", *cell[2:])].mean
        else:
            assert row.mean != of_square[cell].mean


def test_mesoscopic_bias_does_not_know_the_position_table():
    config = BiasConfig(sizes=(42, 84), quadtree=TREE)
    model = tower()
    before = rows_by_cell(model, [picture(60, 90)], config)
    with torch.no_grad():
        model.embeddings.position_embedding.weight.mul_(3)
    after = rows_by_cell(model, [picture(60, 90)], config)
    assert any(after[cell] != row for cell, row in before.items() if row.measure == "interpolation")
    assert all(after[cell] == row for cell, row in before.items() if row.measure == "mesoscopic")


def test_the_quadtree_takes_fewer_tokens_and_at_alpha_0_is_the_uniform_grid():
    pictures = [picture(60, 90)]
    tree = rows_by_cell(tower(), pictures, BiasConfig(sizes=(112,), quadtree=TREE))
    grid = rows_by_cell(tower(), pictures, BiasConfig(sizes=(112,), quadtree=QLIPConfig.paper(alpha=0.0)))
    for measured, shape, _, mode, size in tree:
        uniform, quadtree = ((measured, shape, tiling, mode, size) for tiling in ("uniform", "quadtree"))
        assert tree[quadtree].tokens < tree[uniform].tokens == grid[quadtree].tokens
        assert grid[quadtree].mean == grid[uniform].mean != tree[quadtree].mean


def test_modes_with_a_prior_place_it_with_and_without_the_residual():
    model = tower()
    model.set_prior(CoordinateMLP(16, hidden=8))
    native = Leaves.uniform((4, 4))
    torch.testing.assert_close(place_leaves(model, native, "mlp"), model.position_table.detach(), atol=1e-6, rtol=1e-6)
    u = torch.linspace(-1, 1, 4)
    torch.testing.assert_close(place_leaves(model, native, "mlp-pure"), model.prior(torch.cartesian_prod(u, u)))
    rows = rows_by_cell(model, [picture(60, 60)], BiasConfig(sizes=(NATIVE,), modes=("mlp", "mlp-pure")))
    assert rows["interpolation", "cropped", "uniform", "mlp", NATIVE].mean == pytest.approx(0, abs=1e-4)
    assert rows["interpolation", "cropped", "uniform", "mlp-pure", NATIVE].mean > 1e-3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modes": ("nearest",)}, "modes is 'nearest'; allowed are 'bilinear'"),
        ({"shapes": ("round",)}, "shapes is 'round'; allowed are 'native', 'cropped'"),
        ({"shapes": ()}, r"shapes is \(\); it must hold at least one value"),
        ({"sizes": ()}, r"sizes is \(\)"),
        ({"modes": ("bicubic", "bicubic")}, "modes is .* each once"),
        ({"sizes": (0,)}, "sizes is 0"),
        ({"sizes": (50,)}, "size 50 is not allowed; multiples of 14 up to 1792"),
        ({"sizes": (1806,)}, "size 1806"),
        ({"modes": ("mlp",)}, "no MLP prior"),
        ({"sizes": (112,), "quadtree": QLIPConfig(max_tokens=1)}, "max_tokens is 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        measure(tower(), QLIPImageProcessor(), [picture(60, 60)], BiasConfig(**values))
