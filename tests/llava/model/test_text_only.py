"""Training batches without images: projector and tower take part where other processes wait for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model import text_only
from llava.model.config import LlavaConfig
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.model.multimodal_encoder.base import VisionTower
from llava.train.parameters import unfreeze
from tests.llava.checkpoints import TEXT, VISION, llava_weights, transformers_model

TEXTS = torch.tensor([[1, 20, 21, 22], [1, 30, 31, 0]])
REAL = TEXTS != 0
ABOUT_IMAGES = torch.tensor([[1, 20, IMAGE_TOKEN_INDEX, 22], [1, IMAGE_TOKEN_INDEX, 31, 32]])
IMAGES = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
TOWERS: dict[str, Any] = {"clip": None, "qlip": {"alpha": 0.3}, "qlip with a thumbnail": {"thumbnail": True}}


def make_model(qlip: Any) -> LlavaLlamaForCausalLM:
    settings = {"mm_vision_config": VISION, "mm_projector_type": "mlp2x_gelu", "mm_hidden_size": 64}
    model = LlavaLlamaForCausalLM(LlavaConfig(**TEXT, **settings, qlip=qlip))
    model.load_state_dict(load(llava_weights()))
    return model.requires_grad_(False).train()


@pytest.fixture(params=TOWERS)
def model(request) -> LlavaLlamaForCausalLM:
    return make_model(TOWERS[request.param])


@pytest.fixture
def encoded(monkeypatch) -> list[tuple[int, ...]]:
    """The shapes of the images that towers encode."""
    shapes: list[tuple[int, ...]] = []
    encode = VisionTower.encode_tokens

    def spy(self, images, **options):
        shapes.extend(tuple(image.shape) for image in images)
        return encode(self, images, **options)

    monkeypatch.setattr(VisionTower, "encode_tokens", spy)
    return shapes


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("packs", [None, torch.tensor([0, 0])], ids=["padded", "packed"])
def test_the_projector_alone_can_be_trained(model, encoded, packs):
    model.model.mm_projector.requires_grad_(True)
    output = model(TEXTS, attention_mask=REAL, labels=TEXTS.masked_fill(~REAL, -100), packs=packs)
    output.loss.backward()
    found = gradients(model)
    assert found.keys() == {f"model.mm_projector.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}
    assert not any(gradient.any() for gradient in found.values())
    assert encoded == []  # the frozen tower is not run


def test_logits_and_loss_are_those_of_the_language_model(model):
    """transformers' own Llama, which sees the text alone, is the oracle."""
    model.model.mm_projector.requires_grad_(True)
    oracle, labels = transformers_model(), TEXTS.masked_fill(~REAL, -100)
    wanted = oracle(TEXTS, attention_mask=REAL, labels=labels)
    got = model(TEXTS, attention_mask=REAL, labels=labels)
    torch.testing.assert_close(got.logits[REAL], wanted.logits[REAL], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.loss, wanted.loss, atol=1e-5, rtol=0)


def test_a_trained_tower_takes_part_on_the_smallest_image(model, encoded):
    """Its gradients are those parameters' that an image would reach, and zero."""
    model.model.mm_projector.requires_grad_(True)
    unfreeze(model.get_vision_tower())
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    model(ABOUT_IMAGES, labels=ABOUT_IMAGES.clamp(min=-100), images=IMAGES).loss.backward()
    found = gradients(model)
    assert found.keys() == trained
    assert all(gradient.any() for name, gradient in found.items() if not name.endswith("k_proj.bias"))
    model.zero_grad()
    encoded.clear()
    model(TEXTS, attention_mask=REAL, labels=TEXTS).loss.backward()
    assert gradients(model).keys() == trained
    assert not any(gradient.any() for gradient in gradients(model).values())
    side = VISION["image_size"] if model.config.qlip is None else VISION["patch_size"]
    assert encoded == [(3, side, side)]


def test_sharded_modules_run_even_where_nothing_is_trained(model, encoded, monkeypatch):
    """ZeRO-3 gathers the shards of a module when it runs, in all processes together, in evaluations too."""
    monkeypatch.setattr(text_only, "is_deepspeed_zero3_enabled", lambda: True)
    model(TEXTS, labels=TEXTS)
    assert len(encoded) == 1
    with torch.no_grad():
        model.eval()(TEXTS, labels=TEXTS)
        assert len(encoded) == 2
        model(TEXTS)
        model.generate(TEXTS[:1], max_new_tokens=2)
    assert len(encoded) == 2


def test_nothing_runs_where_nothing_is_trained(model, encoded, monkeypatch):
    monkeypatch.setattr(type(model.model.mm_projector), "forward", lambda *_: pytest.fail("the projector ran"))
    model(TEXTS, labels=TEXTS)
    model.model.mm_projector.requires_grad_(True)
    with torch.no_grad():
        model(TEXTS, labels=TEXTS)
    assert encoded == []


@pytest.mark.parametrize(("tower", "reentrant"), [("clip", True), ("qlip", False), ("qlip with a thumbnail", True)])
def test_checkpointing_trains_the_projector_of_a_frozen_trunk(tower, reentrant):
    model = make_model(TOWERS[tower])
    model.model.mm_projector.requires_grad_(True)
    labels, found = ABOUT_IMAGES.clamp(min=-100), []
    for checkpoint in (False, True):
        if checkpoint:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        for ids, images in ((ABOUT_IMAGES, IMAGES), (TEXTS, None)):
            model(ids, labels=labels, images=images).loss.backward()
        found.append(gradients(model))
        model.zero_grad()
    assert found[0]["model.mm_projector.0.weight"].any()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


@pytest.mark.parametrize(("tower", "reentrant"), [("clip", False), ("qlip", True), ("qlip with a thumbnail", False)])
def test_checkpointing_trains_the_tower(tower, reentrant):
    model = make_model(TOWERS[tower])
    unfreeze(model.get_vision_tower())
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model(ABOUT_IMAGES, labels=ABOUT_IMAGES.clamp(min=-100), images=IMAGES).loss.backward()
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert gradients(model).keys() == trained
    assert gradients(model)["model.vision_tower.vision_tower.embeddings.class_embedding"].any()


def test_modules_run_in_the_order_of_a_batch_with_images(model, monkeypatch):
    """ZeRO-3 gathers the parameters of each module as it runs, in all processes together."""
    monkeypatch.setattr(text_only, "is_deepspeed_zero3_enabled", lambda: True)
    ran: list[str] = []
    for name, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    orders = []
    for ids, images in ((ABOUT_IMAGES, IMAGES), (TEXTS, None)):
        ran.clear()
        model(ids, labels=ids, images=images)
        orders.append(list(ran))
    assert len(orders[0]) > 20 and orders[0] == orders[1]
