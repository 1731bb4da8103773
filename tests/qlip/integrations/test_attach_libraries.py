"""qlip.attach on vision transformers of timm and open_clip, where these are installed (both need torchvision)."""

from __future__ import annotations

import pytest
import torch

import qlip
from tests.qlip.integrations.models import NATIVE, PICTURES, TREE, picture
from tests.weights import randomise

timm = pytest.importorskip("timm", exc_type=ImportError)
open_clip = pytest.importorskip("open_clip", exc_type=ImportError)

UNIFORM = {"alpha": 0.0, "max_tokens": None}
SHAPE = {"img_size": NATIVE, "patch_size": 14, "embed_dim": 32, "depth": 2, "num_heads": 4}
TIMM = {
    "token": {"num_classes": 5},
    "average": {"num_classes": 0, "global_pool": "avg", "class_token": False, "fc_norm": False},
    "registers": {"num_classes": 5, "reg_tokens": 3},
    "positions without [CLS]": {"num_classes": 5, "no_embed_class": True, "reg_tokens": 2, "pre_norm": True},
    "attention pooling": {"num_classes": 0, "global_pool": "map", "class_token": False},
}
WRAPPED = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token", "timm_proj": "linear", "image_size": 64}


def timm_model(name: str):
    return randomise(timm.models.vision_transformer.VisionTransformer(**SHAPE, **TIMM[name]))


def open_clip_model(**vision):
    shape = {"image_size": NATIVE, "patch_size": 14, "width": 64, "layers": 2, "head_width": 16, **vision}
    text = {"context_length": 16, "vocab_size": 99, "width": 32, "heads": 4, "layers": 1}
    return randomise(open_clip.model.CLIP(32, shape, text))


def whole(processor, pictures):
    return processor(pictures, return_tensors="pt")["pixel_values"]


MODELS = [pytest.param(lambda name=name: timm_model(name), id=name) for name in TIMM]
MODELS += [
    pytest.param(lambda: open_clip_model(), id="open_clip"),
    pytest.param(lambda: open_clip_model(pool_type="avg", final_ln_after_pool=True), id="open_clip average"),
    pytest.param(lambda: open_clip_model(**WRAPPED), id="open_clip around timm"),
]


def run(model, images):
    return model.encode_image(images) if hasattr(model, "encode_image") else model(images)


@pytest.mark.parametrize("make", MODELS)
@torch.no_grad()
def test_at_the_native_grid_it_is_the_untouched_model(make):
    model = make()
    expected_names = set(model.state_dict())
    model, processor = qlip.attach(model, **UNIFORM)
    side = processor.crop_size["height"]
    natives = [picture(side, side, seed) for seed in range(3)]
    pixels = whole(processor, natives)
    expected = run(make(), pixels)
    torch.testing.assert_close(run(model, pixels), expected, atol=1e-4, rtol=0)
    assert set(model.state_dict()) == expected_names
    assert expected.std() > 0.01


@pytest.mark.parametrize("make", MODELS)
@torch.no_grad()
def test_an_image_is_the_same_in_any_batch(make):
    model, processor = qlip.attach(make(), **TREE)
    together = run(model, whole(processor, PICTURES))
    for index, image in enumerate(PICTURES):
        torch.testing.assert_close(together[index], run(model, whole(processor, [image]))[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("make", MODELS[:1] + MODELS[-3:])
def test_gradient_checkpointing_runs_layers_again(make):
    model, processor = qlip.attach(make(), **TREE)
    model.set_grad_checkpointing(True)
    blocks, calls = [part for part in model.modules() if type(part).__name__.endswith("Block")], []
    blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    run(model, whole(processor, PICTURES)).square().sum().backward()
    assert len(calls) == 2


@pytest.mark.parametrize("make", [lambda: timm_model("token"), open_clip_model])
@torch.no_grad()
def test_detach_and_other_settings(make):
    model = make()
    pixels = torch.randn(2, 3, NATIVE, NATIVE, generator=torch.Generator().manual_seed(0))
    expected = run(model, pixels)
    model, processor = qlip.attach(model, **TREE)
    model, processor = qlip.attach(model, processor, **UNIFORM)
    torch.testing.assert_close(run(model, pixels), expected, atol=1e-4, rtol=0)
    model, plain = qlip.detach(model, processor)
    assert plain is None
    assert torch.equal(run(model, pixels), expected)


def test_the_models_own_mean_is_taken():
    model = timm_model("token")
    model.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    assert qlip.attach(model)[1].image_mean == [0.1, 0.2, 0.3]


def test_open_clips_mean_is_taken_for_its_timm_tower():
    model = open_clip_model(**WRAPPED)
    open_clip.model.set_model_preprocess_cfg(model, {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "size": 64})
    assert qlip.attach(model)[1].image_mean == list(open_clip.get_model_preprocess_cfg(model)["mean"])


def test_models_without_a_table_or_a_square_grid_are_refused():
    make = timm.models.vision_transformer.VisionTransformer
    with pytest.raises(TypeError, match="no table of absolute positions"):
        qlip.attach(make(**SHAPE, pos_embed="none"))
    with pytest.raises(TypeError, match="a grid of 4 x 8 cells; QLIP needs a square grid"):
        qlip.attach(make(**{**SHAPE, "img_size": (56, 112)}))
    with pytest.raises(TypeError, match="patches of 16 x 8 pixels"):
        qlip.attach(make(**{**SHAPE, "img_size": (64, 32), "patch_size": (16, 8)}))
    for unpooled in (make(**SHAPE, num_classes=0, global_pool=""), open_clip_model(pool_type="none")):
        with pytest.raises(TypeError, match="has no pooled output"):
            qlip.attach(unpooled)
    distilled = timm.models.deit.VisionTransformerDistilled(**SHAPE)
    with pytest.raises(TypeError, match="2 tokens before its patches, of which 1 are known"):
        qlip.attach(distilled)
    with pytest.raises(TypeError, match="Eva is none of .* rotary"):
        qlip.attach(timm.models.eva.Eva(**SHAPE, use_rot_pos_emb=True))
