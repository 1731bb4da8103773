"""Weights of leaves, drawn over their image."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image

from qlip import Leaves, draw_weights
from qlip.tools.heat import SHADE, colour

GREY = Image.new("RGB", (40, 20), (100, 100, 100))


def test_the_colours_are_those_of_matplotlibs_map():
    share = np.linspace(0, 1, 256)
    expected = mpl.colormaps["plasma"](share)[:, :3] * 255
    assert np.abs(colour(share) - expected).max() < 6


def test_each_leaf_is_filled_and_the_more_it_weighs_the_less_is_seen_through():
    leaves = Leaves(torch.tensor([[0, 0, 2], [0, 2, 1], [0, 3, 1], [1, 2, 1], [1, 3, 1]]), (2, 4))
    drawn = np.asarray(draw_weights(GREY, leaves, torch.tensor([0.0, 0.2, 0.4, 0.8, 0.0]))).astype(int)
    assert drawn.shape == (20, 40, 3)
    assert (drawn[:, :20] == round(100 * SHADE)).all() and (drawn[10:, 30:] == round(100 * SHADE)).all()
    blocks = [drawn[:10, 20:30], drawn[:10, 30:], drawn[10:, 20:30]]
    assert all(np.ptp(block.reshape(-1, 3), axis=0).max() == 0 for block in blocks)
    distances = [np.abs(block[0, 0] - 100 * SHADE).sum() for block in blocks]
    assert distances == sorted(distances) and distances[0] > 30
    weak = np.asarray(draw_weights(GREY, leaves, torch.tensor([0.0, 0.2, 0.4, 0.8, 0.0]), top=1.6)).astype(int)
    assert (weak[10:, 20:30] == drawn[:10, 30:]).all()


def test_what_lies_in_padding_is_not_drawn():
    """CLIP's square around a picture twice as wide as high: its first and last quarter are padding."""
    weights = torch.tensor([1.0, 0.5, 0.0, 1.0])[:, None].expand(4, 4).flatten()
    drawn = np.asarray(draw_weights(GREY, Leaves.uniform((4, 4)), weights, (0.0, -0.5, 1.0, 1.5))).astype(int)
    half = np.asarray(draw_weights(GREY, Leaves.uniform((1, 1)), torch.tensor([0.5]), top=1.0)).astype(int)
    assert (drawn[:10] == half[:10]).all()
    assert (drawn[10:] == round(100 * SHADE)).all()


def test_leaves_may_stick_out_of_the_image():
    leaves = Leaves(torch.tensor([[-1, -1, 2], [0, 1, 2]]), (2, 3))
    drawn = np.asarray(draw_weights(GREY, leaves, torch.tensor([1.0, 0.0]))).astype(int)
    assert (drawn[:10, :13] == drawn[0, 0]).all() and (drawn[10:] == round(100 * SHADE)).all()


def test_where_nothing_weighs_anything_there_is_no_heat():
    drawn = np.asarray(draw_weights(GREY, Leaves.uniform((1, 2)), torch.zeros(2)))
    assert (drawn == round(100 * SHADE)).all()


def test_another_number_of_weights_is_refused():
    with pytest.raises(ValueError, match=r"weights are \(3,\); they must be \(2,\)"):
        draw_weights(GREY, Leaves.uniform((1, 2)), torch.zeros(3))
