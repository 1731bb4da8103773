"""Priors on disk: ours and the authors' `.pt` keep their functions; anything else is refused."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from qlip import CoordinateMLP, Leaves, QLIPConfig, QLIPVisionModel, interpolate_positions
from tests.qlip.authors import InterpolationMLP, make_authors_prior
from tests.qlip.samples import paper_partition
from tests.qlip.towers import WIDTH, coordinates, make_tower

POINTS = torch.rand(300, 2, generator=torch.Generator().manual_seed(3)) * 2 - 1


def same(ours: CoordinateMLP, theirs: InterpolationMLP) -> None:
    with torch.no_grad():
        expected = theirs(POINTS)
        assert expected.std() > 0.02
        torch.testing.assert_close(ours(POINTS), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "shape",
    [(16, 32, 4, 48), (1024, 1024, 4, 48), (8, 12, 1, 1), (8, 12, 3, 7)],
    ids=["48 bands", "their sizes", "1 band", "7 bands"],
)
def test_the_authors_state_dict_is_their_function_at_any_point(tmp_path, shape):
    theirs = make_authors_prior(*shape)
    torch.save(theirs.state_dict(), tmp_path / "prior.pt")
    same(CoordinateMLP.load(tmp_path / "prior.pt"), theirs)


def test_the_angle_of_band_j_is_the_coordinate_times_pi_j_twice(tmp_path):
    """By hand: a layer that reads one feature alone shows where it lies among the inputs."""
    bands, point = 3, torch.tensor([[0.3, -0.7]])
    expected = [0.3, -0.7]
    for x in (0.3, -0.7):
        expected += [math.sin(x * (math.pi * j) ** 2) for j in range(bands)]
        expected += [math.cos(x * (math.pi * j) ** 2) for j in range(bands)]
    inputs = 2 + 4 * bands
    identity = {"layers.0.weight": torch.eye(inputs), "layers.0.bias": torch.zeros(inputs)}
    last = {"layers.1.weight": torch.eye(inputs), "layers.1.bias": torch.zeros(inputs)}
    torch.save({**identity, **last}, tmp_path / "prior.pt")
    with torch.no_grad():
        features = CoordinateMLP.load(tmp_path / "prior.pt")(point)[0].atanh()
    torch.testing.assert_close(features, torch.tensor(expected), atol=2e-3, rtol=0)


WRAPPED = {
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": state, "optimizer": {"lr": 0.1}},
    "model_state_dict": lambda state: {"epoch": 3, "model_state_dict": state},
    "module.": lambda state: {f"module.{name}": value for name, value in state.items()},
    "both": lambda state: {"model": {f"module.{name}": value for name, value in state.items()}},
    "half": lambda state: {name: value.half() for name, value in state.items()},
    "any order": lambda state: dict(reversed(state.items())),
}


@pytest.mark.parametrize("wrap", WRAPPED)
def test_what_a_training_script_wraps_around_it_is_taken_off(tmp_path, wrap):
    theirs = make_authors_prior(8)
    if wrap == "half":
        theirs.load_state_dict(WRAPPED[wrap](theirs.state_dict()))
    torch.save(WRAPPED[wrap](theirs.state_dict()), tmp_path / "prior.pt")
    same(CoordinateMLP.load(tmp_path / "prior.pt"), theirs)


def test_layers_are_taken_by_number_and_not_by_name(tmp_path):
    """layers.10 comes after layers.9."""
    theirs = make_authors_prior(8, depth=10)
    torch.save(dict(sorted(theirs.state_dict().items())), tmp_path / "prior.pt")
    assert CoordinateMLP.load(tmp_path / "prior.pt").layers[10].out_features == 8
    with torch.no_grad():
        loaded = CoordinateMLP.load(tmp_path / "prior.pt")(POINTS)
        torch.testing.assert_close(loaded, theirs(POINTS), atol=1e-6, rtol=1e-4)


def test_saved_as_ours_and_loaded_again_it_is_the_same_function(tmp_path):
    theirs = make_authors_prior(8)
    torch.save(theirs.state_dict(), tmp_path / "prior.pt")
    CoordinateMLP.load(tmp_path / "prior.pt").save(tmp_path / "prior.safetensors")
    same(CoordinateMLP.load(tmp_path / "prior.safetensors"), theirs)
    assert "frequencies" in load_file(tmp_path / "prior.safetensors")


def test_in_safetensors_their_names_mean_the_same(tmp_path):
    theirs = make_authors_prior(8)
    save_file(theirs.state_dict(), tmp_path / "prior.safetensors")
    same(CoordinateMLP.load(tmp_path / "prior.safetensors"), theirs)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_our_own_file_keeps_our_frequencies(tmp_path, suffix):
    torch.manual_seed(0)
    ours = CoordinateMLP(8, hidden=12, depth=2, bands=3)
    ours.save(tmp_path / "prior.safetensors")
    torch.save(ours.state_dict(), tmp_path / "prior.pt")
    with torch.no_grad():
        angles = POINTS[:, :, None] * torch.tensor([0.5, 1.0, 1.5]) * math.pi
        hidden = torch.cat([POINTS, angles.sin().flatten(1), angles.cos().flatten(1)], dim=1)
        for layer in ours.layers[:-1]:
            hidden = layer(hidden).tanh()
        loaded = CoordinateMLP.load(tmp_path / f"prior.{suffix}")(POINTS)
        torch.testing.assert_close(loaded, ours.layers[-1](hidden), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("leaf_position", ["centre", "cell"])
@torch.no_grad()
def test_a_tower_adds_it_at_its_leaves(tmp_path, leaf_position, residual):
    """Oracle: their function at the leaves' coordinates, written out."""
    theirs = make_authors_prior(WIDTH)
    torch.save(theirs.state_dict(), tmp_path / "prior.pt")
    settings = {"interpolation": "mlp", "mlp": str(tmp_path / "prior.pt"), "leaf_position": leaf_position}
    tower = QLIPVisionModel(make_tower("clip"), QLIPConfig(**settings, mlp_residual=residual))
    tower.load_prior()
    leaves = paper_partition(torch.zeros(1, 24, 32), 2, alpha=0.6, criterion="random")
    assert leaves.sizes.unique().tolist() == [1, 2, 4]
    shift = (leaves.sizes - 1) / 2 if leaf_position == "centre" else leaves.sizes // 2
    points = 2 * (leaves.boxes[:, :2] + shift[:, None]) / torch.tensor([11, 15]) - 1
    expected = theirs(points)
    if residual:
        missed = tower.position_table - theirs(coordinates(4, 4))
        expected = expected + interpolate_positions(missed, leaves, "bicubic", leaf_position=leaf_position)
    torch.testing.assert_close(tower.positions(leaves)[1:], expected, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_on_a_uniform_grid_the_authors_coordinates_are_ours(tmp_path):
    """Theirs: (row + w // 2, col + w // 2) over the largest of the leaves, on [-1, 1]."""
    theirs = make_authors_prior(4)
    torch.save(theirs.state_dict(), tmp_path / "prior.pt")
    leaves = Leaves.uniform((7, 9))
    places = leaves.boxes[:, :2] + leaves.sizes[:, None] // 2
    expected = theirs(2 * places / places.amax(0) - 1)
    prior = CoordinateMLP.load(tmp_path / "prior.pt")
    for leaf_position in ("centre", "cell"):
        found = interpolate_positions(torch.zeros(16, 4), leaves, "mlp", prior, leaf_position, mlp_residual=False)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def without(name):
    return lambda state: {key: value for key, value in state.items() if key != name}


def changed(name, value):
    return lambda state: {**state, name: value}


REFUSED = {
    "another name": (lambda s: {f"net.{k}": v for k, v in s.items()}, r"it holds 'net\.layers\.0\.weight'"),
    "sequential": (lambda s: {k.replace("layers", "net"): v for k, v in s.items()}, r"it holds 'net\.0\.weight'"),
    "one more": (changed("scale", torch.ones(1)), "it holds 'scale'"),
    "no bias": (without("layers.1.bias"), "each with a bias"),
    "no layer": (lambda s: {}, r"shapes \[\]"),
    "broken chain": (changed("layers.1.weight", torch.zeros(24, 23)), r"shapes \[\(24, 22\), \(24, 23\), \(8, 24\)\]"),
    "odd width": (changed("layers.0.weight", torch.zeros(24, 23)), r"expected \(hidden, 2 \+ 4 bands\)"),
    "no bands": (changed("layers.0.weight", torch.zeros(24, 2)), r"expected \(hidden, 2 \+ 4 bands\)"),
    "a number": (changed("layers.0.bias", 3.0), r"'layers\.0\.bias' is not a tensor"),
    "NaN": (changed("layers.0.bias", torch.full((24,), math.nan)), "is damaged: layers.0.bias holds NaN or infinity"),
    "infinity": (changed("layers.0.bias", torch.full((24,), math.inf)), "layers.0.bias holds NaN or infinity"),
    "sparse": (changed("layers.0.bias", torch.zeros(24).to_sparse()), r"'layers\.0\.bias' is sparse or has no values"),
    "nested": (lambda s: {"weights": s}, "'weights' is not a tensor"),
    "a list": (lambda s: list(s.values()), "holds a list"),
    "frequencies of another width": (changed("frequencies", torch.ones(4)), "expected 5 finite numbers"),
    "frequencies below 0": (changed("frequencies", -torch.ones(5)), "expected 5 finite numbers"),
    "frequencies without a number": (changed("frequencies", torch.full((5,), math.nan)), "expected 5 finite numbers"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_another_layout_is_an_error_that_names_it(tmp_path, kind):
    change, message = REFUSED[kind]
    torch.save(change(dict(make_authors_prior(8).state_dict())), tmp_path / "prior.pt")
    with pytest.raises(ValueError, match=rf"prior\.pt .*{message}") as error:
        CoordinateMLP.load(tmp_path / "prior.pt")
    assert "\n" not in str(error.value)


def test_a_pickled_module_is_refused_with_the_way_out(tmp_path):
    torch.save(nn.Linear(2, 3), tmp_path / "prior.pt")
    with pytest.raises(ValueError, match=r"prior\.pt can't be read: .* save torch\.save\(module\.state_dict\(\), FILE"):
        CoordinateMLP.load(tmp_path / "prior.pt")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"text"])
def test_a_damaged_file_is_named(tmp_path, suffix, damage):
    path = tmp_path / f"prior.{suffix}"
    state = make_authors_prior(8).state_dict()
    torch.save(state, path) if suffix == "pt" else save_file(state, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"prior\.{suffix} (can't be read: it is damaged|is not a safetensors file)"):
        CoordinateMLP.load(path)


def test_a_file_that_is_nowhere_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no MLP prior at .*absent\.pt"):
        CoordinateMLP.load(tmp_path / "absent.pt")


def test_a_prior_is_copied_to_frozen_float32_and_stays_as_it_was():
    prior = CoordinateMLP(WIDTH, hidden=16).half().requires_grad_()
    model = QLIPVisionModel(make_tower("clip"), QLIPConfig(interpolation="mlp", mlp="prior.safetensors"))
    model.set_prior(prior, "prior.safetensors")
    model([torch.randn(3, 28, 42)])
    assert all(own.dtype == torch.float16 and own.requires_grad for own in prior.parameters())
    for own, copied in zip(prior.parameters(), model.prior.parameters(), strict=True):
        assert copied.dtype == torch.float32 and not copied.requires_grad
        assert torch.equal(own.float(), copied)
    assert not any("prior" in name for name in model.state_dict())
