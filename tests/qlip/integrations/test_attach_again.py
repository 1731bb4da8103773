"""A model that is attached again starts from what its checkpoint holds; an attached one is not copied to other GPUs."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForImageTextToText

import qlip
from tests.qlip.integrations.models import (
    TREE,
    attached,
    make_contrastive_model,
    make_language_model,
    make_processor,
    make_vision_model,
    picture,
)

OTHERS = ({"keep_split_cells": True}, {"size_bias": -0.4}, {"max_tokens": 20})


REPLICAS = "nn.DataParallel can't copy"


def settings_of(model) -> qlip.QLIPConfig:
    """Those in use, which are those that are saved."""
    assert model.config.qlip == model.attachment.vision.qlip.to_dict()
    return model.attachment.vision.qlip


@pytest.mark.parametrize("make", [lambda: make_language_model("llava"), lambda: make_vision_model("clip")])
def test_settings_of_an_earlier_attachment_do_not_count(make):
    model = make()
    for changes in OTHERS:
        qlip.attach(model, **changes)
        assert settings_of(model) == qlip.QLIPConfig(**changes)
    assert settings_of(qlip.attach(model)[0]) == qlip.QLIPConfig()
    assert not hasattr(qlip.detach(model)[0].config, "qlip")


def test_each_starts_from_the_checkpoint_and_detaching_restores_its_settings(tmp_path):
    attached("llava", **TREE)[0].save_pretrained(tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    held = dict(model.config.qlip)
    for changes in ({}, *OTHERS, {"config": qlip.QLIPConfig(alpha=0.1)}, {"alpha": 0.9}):
        qlip.attach(model, **changes)
        own = {"alpha": 0.1} if "config" in changes else {**TREE, **changes}
        assert settings_of(model) == qlip.QLIPConfig(**own)
    again = copy.deepcopy(model)
    assert settings_of(qlip.attach(again)[0]) == qlip.QLIPConfig(**TREE)
    assert qlip.detach(model)[0].config.qlip == held
    assert settings_of(qlip.attach(model)[0]) == qlip.QLIPConfig(**TREE)


def test_what_is_saved_is_what_was_attached_last(tmp_path):
    model, _ = attached("llava", **TREE)
    qlip.attach(model, alpha=0.3)[0].save_pretrained(tmp_path)
    loaded, _ = qlip.attach(AutoModelForImageTextToText.from_pretrained(tmp_path))
    assert settings_of(loaded) == qlip.QLIPConfig(alpha=0.3)


def test_an_edited_configuration_counts():
    model, _ = attached("llava", **TREE)
    model.config.qlip = {"alpha": 0.2}
    assert settings_of(qlip.attach(model, max_tokens=99)[0]) == qlip.QLIPConfig(alpha=0.2, max_tokens=99)
    assert not hasattr(qlip.detach(model)[0].config, "qlip")  # the checkpoint had none


def test_a_processor_of_an_earlier_attachment_is_refused_where_the_settings_meet():
    model, plain = make_language_model("llava"), make_processor("llava")
    _, earlier = qlip.attach(model, plain, budget="question", geometry="grid")
    _, own = qlip.attach(model, plain, budget="question")
    prompt = "<image> what?"
    with pytest.raises(ValueError, match="processor has geometry='grid', the model geometry='native'; give the proc"):
        qlip.process_for_question(model, earlier, picture(56, 98), prompt)
    qlip.process_for_question(model, own, picture(56, 98), prompt)


@pytest.mark.parametrize(
    "make",
    [
        lambda: make_language_model("llava"),
        lambda: make_language_model("llava_next"),
        lambda: make_contrastive_model("clip"),
        lambda: make_vision_model("dinov2"),
    ],
)
def test_data_parallel_replicas_are_refused(make):
    """nn.DataParallel makes a replica of every module of a model, and runs each on a GPU of its own."""
    model, _ = qlip.attach(make())
    with pytest.raises(TypeError, match=f"{REPLICAS} this .*torchrun, with DistributedDataParallel"):
        [module._replicate_for_data_parallel() for module in model.modules()]
    plain, _ = qlip.detach(model)
    assert all([module._replicate_for_data_parallel()._is_replica for module in plain.modules()])


def test_a_tower_in_a_model_of_ones_own_is_not_replicated_either():
    """Its adapter computes with the modules of the first GPU."""
    whole = torch.nn.Sequential(qlip.QLIPVisionModel(make_vision_model("clip")))
    with pytest.raises(TypeError, match=f"{REPLICAS} this QLIPVisionModel"):
        [module._replicate_for_data_parallel() for module in whole.modules()]
