"""Fixtures shared by all tests: real photographs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

Photograph = Callable[..., torch.Tensor]


@pytest.fixture(scope="session")
def photograph() -> Photograph:
    """Makes photographs that ship with scikit-image: (name, height, width) -> float32 (3, height, width).

    With `normalised` the values are what CLIP takes; without, they are whole numbers 0..255, whose sums float32 holds
    exactly, so that equal scores are equal however they were computed.
    """

    def load(name: str, height: int, width: int, *, normalised: bool = True) -> torch.Tensor:
        picture = Image.fromarray(getattr(skimage.data, name)()).convert("RGB").resize((width, height))
        values = np.asarray(picture, dtype=np.float32)
        if normalised:
            values = (values / 255 - np.float32(CLIP_MEAN)) / np.float32(CLIP_STD)
        return torch.from_numpy(values.transpose(2, 0, 1).copy())

    return load
