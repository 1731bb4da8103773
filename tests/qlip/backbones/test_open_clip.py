"""What the adapter of open_clip refuses, of a stand-in: open_clip need not be installed.

tests/qlip/integrations/test_attach_libraries.py attaches its real models.
"""

from __future__ import annotations

import pytest
import torch

import qlip


class VisionTransformer(torch.nn.Module):
    """Has what is read before open_clip's own parts are."""

    def __init__(self, output_tokens: bool, grid_size: tuple[int, int]) -> None:
        super().__init__()
        self.output_tokens, self.grid_size = output_tokens, grid_size


VisionTransformer.__module__ = "open_clip.transformer"


@pytest.mark.parametrize(
    ("output_tokens", "grid_size", "words"),
    [
        (True, (8, 8), "returns its tokens beside the embedding, as in CoCa"),
        (False, (8, 2), "has a grid of 8 x 2 cells; QLIP needs a square grid"),
    ],
)
def test_what_qlip_would_misread_is_refused(output_tokens, grid_size, words):
    with pytest.raises(TypeError, match=f"VisionTransformer of open_clip {words}"):
        qlip.attach(VisionTransformer(output_tokens, grid_size))
