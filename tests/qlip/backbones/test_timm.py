"""Vision transformers of timm whose tokens or patches QLIP would misread are refused when it is attached.

timm is not needed: only the names of classes, and the attributes that it documents, are looked at.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import qlip
from tests.qlip.backbones.stand_ins import make_timm as make_vit


def test_what_is_refused_below_is_otherwise_taken():
    assert qlip.attach(make_vit())[1].native_grid == 4
    registers = make_vit(prefix=3)
    registers.reg_token = nn.Parameter(torch.zeros(1, 2, 32))
    qlip.attach(registers)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: make_vit("VisionTransformerDistilled", prefix=2), "2 tokens before its patches, of which 1 are known"),
        (lambda: make_vit(proj=nn.Conv2d(1024, 32, 1)), r"patches of 1024 channels and a kernel of \(1, 1\)"),
        (lambda: make_vit(proj=nn.Conv2d(3, 32, 16, 14)), r"3 channels and a kernel of \(16, 16\), .* \(14, 14\)"),
        (lambda: make_vit(proj=nn.Conv2d(1, 32, 14, 14)), "patches of 1 channels"),
        (lambda: make_vit(proj=nn.Linear(588, 32)), "patches of None channels"),
        (lambda: make_vit(grid_size=(4, 8)), "a grid of 4 x 8 cells"),
        (lambda: make_vit(patch_size=(16, 8), proj=nn.Conv2d(3, 32, (16, 8))), "patches of 16 x 8 pixels"),
        (lambda: make_vit(norm=nn.LayerNorm(32)), "a norm after its patches"),
    ],
    ids=["distilled", "hybrid", "overlapping", "grey", "linear", "oblong", "oblong patches", "norm"],
)
def test_what_qlip_would_misread_is_refused(model, reason):
    with pytest.raises(TypeError, match=f"of timm has .*{reason}"):
        qlip.attach(model())
