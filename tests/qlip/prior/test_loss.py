"""The loss of an MLP prior: both terms against independent computations, and the grid term's closed form."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from qlip import CoordinateMLP, QLIPVisionModel
from qlip.prior.batches import Batch
from qlip.prior.loss import PriorLoss, solve_last_layer
from tests.qlip.towers import CLASSES, NATIVE, WIDTH, coordinates, make_tower, weights


def smooth_field(points: torch.Tensor, width: int) -> torch.Tensor:
    """(N, width): waves of up to two periods over the picture, at the scale of CLIP's table."""
    generator = torch.Generator().manual_seed(0)
    frequencies = torch.randn(2, width, generator=generator) * math.pi
    return 0.02 * torch.cos(points @ frequencies + torch.rand(width, generator=generator) * 2 * math.pi)


def test_a_table_of_clips_size_is_met_exactly_and_read_smoothly_in_between():
    prior = CoordinateMLP(1024)
    table, fine = smooth_field(coordinates(24, 24), 1024), coordinates(47, 47)
    solve_last_layer(prior, table)
    with torch.no_grad():
        assert (prior(coordinates(24, 24)) - table).abs().max() < 1e-5
        assert (prior(fine) - smooth_field(fine, 1024)).abs().mean() < 0.1 * table.std()


def test_where_points_outnumber_inputs_the_last_layer_is_the_least_squares_one():
    torch.manual_seed(0)
    prior, table = CoordinateMLP(4, hidden=8, depth=1), torch.randn(36, 4)
    with torch.no_grad():
        before = prior.layers[0].weight.clone()
        angles = (coordinates(6, 6)[..., None] * prior.frequencies).flatten(-2)
        features = torch.cat([coordinates(6, 6), angles.sin(), angles.cos()], dim=-1)
        hidden = torch.cat([torch.tanh(prior.layers[0](features)), torch.ones(36, 1)], dim=1)
        best = hidden @ torch.from_numpy(np.linalg.lstsq(hidden.numpy(), table.numpy())[0])
        solve_last_layer(prior, table)
        torch.testing.assert_close(prior(coordinates(6, 6)), best, atol=1e-4, rtol=1e-4)
    assert torch.equal(prior.layers[0].weight, before)


def test_a_prior_that_is_exact_stays_as_it_is():
    prior = CoordinateMLP(8, hidden=64, depth=2)
    with torch.no_grad():
        table, before = prior(coordinates(5, 5)), weights(prior)
    solve_last_layer(prior, table)
    torch.testing.assert_close(weights(prior), before, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", CLASSES)
def test_the_loss_is_that_of_a_native_and_a_larger_model_with_the_priors_positions(kind):
    """Oracle: transformers' own model, the second time built for larger images with a table read off the prior."""
    torch.manual_seed(0)
    native, larger = make_tower(kind), make_tower(kind, 70)
    references, images = torch.randn(2, 3, NATIVE, NATIVE), torch.randn(2, 3, 70, 70)
    prior = CoordinateMLP(WIDTH, hidden=16, depth=2)
    state = copy.deepcopy(native.state_dict())
    name = "embeddings.position_embedding.weight"
    cls = state[name][: len(state[name]) - 16]
    with torch.no_grad():
        state[name] = torch.cat([cls, prior(coordinates(5, 5))])
        larger.load_state_dict(state, strict=False)
        expected = (native(references).pooler_output - larger(images).pooler_output).norm(dim=1).mean()
        grid = (prior(coordinates(4, 4)) - native.state_dict()[name][len(cls) :]).abs().mean()
        terms = PriorLoss(prior, QLIPVisionModel(native))(Batch(references, list(images), [0.0, 0.0], [0, 0]))
    torch.testing.assert_close(terms, torch.stack([expected, grid]), atol=1e-4, rtol=1e-4)


def test_the_gradient_passes_through_the_tower_into_the_prior():
    """Oracle: the central difference of the consistency term along its gradient."""
    torch.manual_seed(0)
    loss = PriorLoss(CoordinateMLP(WIDTH, hidden=16, depth=1), QLIPVisionModel(make_tower("clip")))
    batch = Batch(torch.randn(1, 3, NATIVE, NATIVE), [torch.randn(3, 70, 84)], [1.0], [0])
    parameters = list(loss.prior.parameters())
    gradient = torch.autograd.grad(loss.consistency(batch), parameters)
    length = torch.cat([part.flatten() for part in gradient]).norm()
    assert length > 1e-3
    step, values = 1e-2, []
    with torch.no_grad():
        for sign in (1, -2):
            for parameter, part in zip(parameters, gradient, strict=True):
                parameter += sign * step * part / length
            values.append(loss.consistency(batch).item())
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(length.item(), rel=0.02)
