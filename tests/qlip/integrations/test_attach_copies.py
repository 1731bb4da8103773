"""Copies of attached models and processors work as the originals, and no part may be exchanged unseen."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from peft import LoraConfig, get_peft_model

import qlip
from tests.qlip.integrations.models import PICTURES, PROMPTS, TREE, ask, attached


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_a_copy_is_attached_to_its_own_weights(clone):
    model, processor = attached("llava", **TREE)
    other = clone(model)
    assert type(other) is type(model)
    assert other.attachment.vision.encoder is other.model.vision_tower.encoder
    with torch.no_grad():
        other.model.vision_tower.embeddings.patch_embedding.weight.zero_()
        inputs = ask(processor, PROMPTS[:1], PICTURES[1:2])
        assert not torch.allclose(other(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))], ids=["copy", "pickle"])
@pytest.mark.parametrize("kind", ["llava", "llava_next"])
def test_a_copy_of_the_processor_prepares_alike(kind, clone):
    """As a DataLoader's workers get it that are spawned."""
    _, processor = attached(kind, **TREE)
    other = clone(processor)
    assert type(other) is type(processor)
    expected, inputs = (ask(one, PROMPTS[:1], PICTURES[:1]) for one in (processor, other))
    assert all(torch.equal(inputs[name], expected[name]) for name in expected)


def test_a_tower_that_was_replaced_is_named_and_not_passed_over():
    """PEFT would train a copy of the tower that never runs."""
    model, processor = attached("llava", **TREE)
    inputs = ask(processor, PROMPTS[:1], PICTURES[:1])
    config = LoraConfig(target_modules=["q_proj"], modules_to_save=["vision_tower"])
    with pytest.raises(TypeError, match=r"was replaced by a ModulesToSaveWrapper after qlip\.attach"):
        get_peft_model(model, config)(**inputs)
    model, processor = attached("llava", **TREE)
    model.model.vision_tower = copy.deepcopy(model.model.vision_tower)
    with pytest.raises(TypeError, match=r"was replaced by a CLIPVisionModel after qlip\.attach"):
        model(**inputs)


def test_a_wrapped_model_is_not_half_detached():
    model, processor = attached("llava", **TREE)
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(TypeError, match="PeftModel is not attached, but a model inside it is: detach that one"):
        qlip.detach(wrapped, processor)
    plain, _ = qlip.detach(wrapped.get_base_model(), processor)
    assert not hasattr(plain.config, "qlip")
