"""What models of timm and open_clip have in common, of stand-ins: neither need be installed."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from PIL import Image

import qlip
from tests.qlip.backbones.stand_ins import PatchDropout, make_open_clip, make_timm
from tests.weights import randomise

MAKERS = pytest.mark.parametrize("make", [make_timm, make_open_clip], ids=["timm", "open_clip"])


@torch.no_grad()
@pytest.mark.parametrize(
    ("make", "option"),
    [(make_timm, {"global_pool": ""}), (make_open_clip, {"pool_type": "none"})],
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


@MAKERS
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


@MAKERS
def test_images_have_the_libraries_name_and_no_mask(make):
    model, images = qlip.attach(make())[0], torch.rand(2, 3, 56, 56)
    expected = model(images)
    for same in (model(x=images), model(images=images), model(images, None, False), model(x=images, attn_mask=None)):
        assert torch.equal(same, expected)
    with pytest.raises(ValueError, match="attn_mask is given; an attached model makes its own mask"):
        model(images, attn_mask=torch.ones(17, 17))
    with pytest.raises(ValueError, match="is_causal is true"):
        model(images, is_causal=True)
    with pytest.raises(TypeError, match="images are given twice; give them once, as x, images or pixel_values"):
        model(images, images=images)
    with pytest.raises(TypeError, match="images are missing; give them once"):
        model()


@torch.no_grad()
@MAKERS
def test_replaced_parameters_are_used(make):
    settings, images = {"alpha": 0.0, "max_tokens": None}, [torch.rand(3, 56, 56), torch.rand(3, 28, 56)]
    other = qlip.QLIPVisionModel(randomise(make(), seed=1), settings, -1)
    weights, expected = other.state_dict(), other(images, pool=True)
    model = qlip.QLIPVisionModel(make(), settings, -1)
    called = torch.func.functional_call(model, weights, (images,), {"pool": True})
    assert not torch.equal(model(images, pool=True).pooled, expected.pooled)
    model.load_state_dict(weights, assign=True)
    for same in (called, model(images, pool=True), copy.deepcopy(model)(images, pool=True)):
        assert torch.equal(same.pooled, expected.pooled)
        assert all(map(torch.equal, same.features, expected.features))
    tower = make()
    attached = qlip.attach(tower, **settings)[0]
    tower.load_state_dict(weights, assign=True)
    assert torch.equal(attached(images), expected.pooled)


@torch.no_grad()
@MAKERS
def test_what_the_processor_returns_is_taken_whole(make):
    """An image of the native size is not split; its pixels as a tensor are the oracle."""
    model, processor = qlip.attach(make())
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (56, 56, 3), dtype=np.uint8))
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    pixels = (torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255 - mean) / std
    torch.testing.assert_close(model(**processor(picture, return_tensors="pt")), model([pixels]))
    with pytest.raises(TypeError, match="pixel_values are a Image; give what the attached processor makes of images"):
        model(picture)


@pytest.mark.parametrize(("make", "name"), [(make_timm, "patch_drop"), (make_open_clip, "patch_dropout")])
def test_patches_that_training_leaves_out_are_refused_in_training(make, name):
    """Nothing would be left out: the model would train otherwise than it was told to."""
    tower, images = make(), torch.rand(2, 3, 56, 56)
    setattr(tower, name, PatchDropout(0.5))
    model = qlip.attach(tower)[0]
    with pytest.raises(ValueError, match=r"leaves out 0.5 of its patches in training, .* patch_dropout \(open_clip\)"):
        model.train()(images)
    assert model.eval()(images).shape == model(images).shape
    setattr(tower, name, torch.nn.Identity())
    model.train()(images)


def test_timms_dropout_of_embeddings_is_applied_in_training():
    tower, images = make_timm(), torch.rand(2, 3, 56, 56)
    tower.pos_drop = torch.nn.Dropout(0.5)
    model = qlip.attach(tower)[0].train()
    assert not torch.equal(model(images), model(images))
    assert torch.equal(model.eval()(images), model(images))
