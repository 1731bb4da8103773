"""Vision transformers of timm whose tokens or patches QLIP would misread are refused when it is attached.

timm is not needed: only the names of classes, and the attributes that it documents, are looked at.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import qlip
from tests.qlip.backbones.stand_ins import make_open_clip
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


@torch.no_grad()
@pytest.mark.parametrize(
    ("make", "option"),
    [(make_vit, {"global_pool": ""}), (make_open_clip, {"pool_type": "none"})],
    ids=["timm", "open_clip"],
)
def test_a_model_that_pools_nothing_gives_features_but_is_not_attached(make, option):
    model = make()
    vars(model).update(option)
    with pytest.raises(TypeError, match="VisionTransformer has no pooled output .* or take qlip.QLIPVisionModel"):
        qlip.attach(model)
    vision = qlip.QLIPVisionModel(model, {"alpha": 0.0, "max_tokens": None}, -1)
    images = [torch.zeros(3, 56, 56), torch.zeros(3, 28, 56)]
    assert [len(features) for features in vision(images).features] == [16, 8]
    with pytest.raises(ValueError, match="no pooled output: its vision_use_head, global_pool or pool_type says so"):
        vision(images, pool=True)
    vars(model)["attn_pool"] = torch.nn.Identity()
    qlip.attach(model)


@pytest.mark.parametrize("make", [make_vit, make_open_clip], ids=["timm", "open_clip"])
def test_gradient_checkpointing_runs_layers_again_for_the_same_gradients(make):
    model = qlip.attach(make(), alpha=0.0, max_tokens=None)[0]
    images = [torch.rand(3, 56, 56), torch.rand(3, 28, 56)]
    block, gradients = next(module for module in model.modules() if hasattr(module, "calls")), []
    for enable, calls in ((False, 1), (True, 2)):
        block.calls = 0
        model.set_grad_checkpointing(enable)
        gradients.append(torch.autograd.grad(model(images).square().sum(), block.linear.weight)[0])
        assert block.calls == calls
    assert torch.equal(*gradients)
    assert gradients[0].any()
    with torch.no_grad():
        model(images)
    assert block.calls == 3


@pytest.mark.parametrize("make", [make_vit, make_open_clip], ids=["timm", "open_clip"])
def test_images_have_the_libraries_name_and_no_mask(make):
    model, images = qlip.attach(make())[0], torch.rand(2, 3, 56, 56)
    expected = model(images)
    for same in (model(x=images), model(images=images), model(images, None, False), model(x=images, attn_mask=None)):
        assert torch.equal(same, expected)
    with pytest.raises(ValueError, match="attn_mask is given; an attached model makes its own mask"):
        model(images, attn_mask=torch.ones(17, 17))
    with pytest.raises(ValueError, match="is_causal is true"):
        model(images, is_causal=True)
    with pytest.raises(TypeError, match="images are given twice; give them once, as x or images"):
        model(images, images=images)
    with pytest.raises(TypeError, match="images are missing; give them once"):
        model()
