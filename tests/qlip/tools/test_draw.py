"""The overlay of a quadtree."""

from __future__ import annotations

import numpy as np
from PIL import Image

from qlip import Leaves, draw_leaves


def test_every_border_of_every_leaf_is_drawn():
    leaves = Leaves.uniform((2, 3))
    drawing = np.asarray(draw_leaves(Image.new("RGB", (42, 28), (10, 10, 10)), leaves, colour=(255, 0, 0)))
    for line in (0, 14, 28):
        assert (drawing[line] == (255, 0, 0)).all()
    for line in (0, 14, 28, 42):
        assert (drawing[:, line] == (255, 0, 0)).all()
