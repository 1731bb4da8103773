"""Which features of the tower a call asks for: by transformers' own arguments, against transformers without QLIP."""

from __future__ import annotations

import inspect

import pytest
import torch

import qlip
from tests.qlip.integrations.models import (
    GREEDY,
    NATIVE,
    PICTURES,
    TREE,
    ask,
    attached,
    make_language_model,
    make_processor,
    picture,
)

KINDS = ["llava", "llava_siglip", "vipllava", "llava_next"]
OWN = {"llava_siglip": "full"}
OTHER_LAYERS = {"vipllava": [0, 1, 2]}


def pair(kind):
    """The plain model with its inputs, and the same attached and without any split."""
    plain, theirs = make_language_model(kind), make_processor(kind)
    tiles = {"tiling": "tiles"} if kind == "llava_next" else {}
    model, ours = qlip.attach(make_language_model(kind), theirs, alpha=0.0, max_tokens=None, **tiles)
    prompt, images = ["USER: <image>\nwhat? ASSISTANT:"], [picture(NATIVE, NATIVE, 0)]
    return plain, ask(theirs, prompt, images), model, ask(ours, prompt, images)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_another_layer_is_used_by_forward_and_generate(kind):
    plain, theirs, model, ours = pair(kind)
    layer = OTHER_LAYERS.get(kind, 1)
    known = inspect.signature(inspect.unwrap(type(plain).forward)).parameters
    name = next(name for name in ("vision_feature_layer", "vision_feature_layers") if name in known)
    expected = plain(**theirs, **{name: layer}).logits
    assert not torch.allclose(expected, plain(**theirs).logits, atol=1e-3)
    names = ["vision_feature_layer", "vision_feature_layers"] if kind == "vipllava" else ["vision_feature_layer"]
    for own in names:
        torch.testing.assert_close(model(**ours, **{own: layer}).logits, expected, atol=1e-4, rtol=0)
        said = model.generate(**ours, **GREEDY, **{own: layer}, output_logits=True, return_dict_in_generate=True)
        torch.testing.assert_close(said.logits[0], expected[:, -1], atol=1e-4, rtol=0)
        assert torch.equal(said.sequences, plain.generate(**theirs, **GREEDY, **{name: layer}))
        images = {name: ours[name] for name in ours if name not in ("input_ids", "attention_mask")}
        features = model.get_image_features(**images, **{own: layer}).pooler_output[0]
        assert not torch.allclose(features, model.get_image_features(**images).pooler_output[0], atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_strategy_that_would_change_the_tokens_is_named(kind):
    model, processor = attached(kind, **TREE)
    inputs = ask(processor, ["see <image> now"], PICTURES[1:2])
    images = {name: inputs[name] for name in inputs if name not in ("input_ids", "attention_mask")}
    own = OWN.get(kind, "default")
    other = {"default": "full", "full": "default"}[own]
    calls = {
        "forward": lambda strategy: model(**inputs, **strategy).logits,
        "generate": lambda strategy: model.generate(**inputs, **GREEDY, **strategy),
        "features": lambda strategy: model.get_image_features(**images, **strategy).pooler_output[0],
    }
    for call in calls.values():
        assert torch.equal(call({"vision_feature_select_strategy": own}), call({}))
        with pytest.raises(ValueError, match=f"vision_feature_select_strategy is '{other}'; leaves have '{own}' alone"):
            call({"vision_feature_select_strategy": other})


@torch.no_grad()
def test_text_alone_needs_neither():
    model, processor = attached("llava", **TREE)
    inputs = ask(processor, ["no picture"], [])
    given = {"vision_feature_layer": 1, "vision_feature_select_strategy": "default"}
    assert torch.equal(model.generate(**inputs, **GREEDY, **given), model.generate(**inputs, **GREEDY))
    assert torch.equal(model(**inputs, **given).logits, model(**inputs).logits)
