"""Attaching and detaching where something else has its hands on the model's `forward`, and calls by its own class."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate import Accelerator, dispatch_model
from accelerate.hooks import remove_hook_from_module
from accelerate.state import AcceleratorState
from peft import LoraConfig, get_peft_model

import qlip
from tests.qlip.integrations.models import (
    PICTURES,
    PROMPTS,
    TREE,
    ask,
    make_language_model,
    make_processor,
    make_vision_model,
    picture,
)

KINDS = ["llava", "llava_siglip", "vipllava", "llava_next"]
UNSPLIT = {"alpha": float("inf"), "max_tokens": None, "llm_size_bias": 0.0}


@pytest.fixture(autouse=True)
def state(monkeypatch):
    """Accelerate keeps one precision a process; the one of tests before stays theirs."""
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})


def prepared(model):
    """As `Trainer(bf16=True)` leaves a model behind."""
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    return accelerator.unwrap_model(accelerator.prepare(model))


def logits(model, processor):
    with torch.no_grad():
        return model(**ask(processor, PROMPTS[:1], PICTURES[1:2])).logits


# A forward method that is stored on the model


@pytest.mark.parametrize(
    "make", [lambda: make_language_model("llava"), lambda: make_vision_model("clip")], ids=["llava", "clip"]
)
def test_a_model_in_mixed_precision_is_refused_and_stays_as_it_was(make):
    model = prepared(make())
    kind = type(model)
    with pytest.raises(TypeError, match="has a forward method of its own, which mixed precision"):
        qlip.attach(model)
    assert type(model) is kind and not hasattr(model, "attachment") and not hasattr(model.config, "qlip")


def test_a_model_out_of_mixed_precision_is_attached():
    plain, processor = make_language_model("llava"), make_processor("llava")
    expected = logits(*qlip.attach(copy.deepcopy(plain), processor, **TREE))
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    model = accelerator.unwrap_model(accelerator.prepare(plain), keep_fp32_wrapper=False)
    torch.testing.assert_close(logits(*qlip.attach(model, processor, **TREE)), expected)


def test_an_attached_model_in_mixed_precision_is_attached_again_but_not_detached():
    plain, processor = make_language_model("llava"), make_processor("llava")
    expected = logits(plain, processor)
    model, attached_processor = qlip.attach(plain, processor, **TREE)
    prepared(model)
    model, attached_processor = qlip.attach(model, attached_processor, **UNSPLIT)
    assert logits(model, attached_processor).dtype == torch.float32  # as mixed precision gives it
    with pytest.raises(TypeError, match="has a forward method of its own"):
        qlip.detach(model, attached_processor)
    del model.forward
    model, restored = qlip.detach(model, attached_processor)
    assert torch.equal(logits(model, restored), expected)


@pytest.mark.parametrize("attached_first", [True, False])
def test_hooks_of_accelerate_that_were_taken_off_leave_nothing_behind(attached_first):
    plain, processor = make_language_model("llava"), make_processor("llava")
    before, expected = logits(plain, processor), logits(*qlip.attach(copy.deepcopy(plain), processor, **TREE))
    model, used = qlip.attach(plain, processor, **TREE) if attached_first else (plain, processor)
    model = dispatch_model(model, {"": "cpu"}, force_hooks=True)
    remove_hook_from_module(model, recurse=True)
    if not attached_first:
        model, used = qlip.attach(model, used, **TREE)
    torch.testing.assert_close(logits(model, used), expected)
    torch.testing.assert_close(logits(*qlip.detach(model, used)), before)


def test_a_compiled_forward_is_refused():
    model = make_language_model("llava")
    model.forward = torch.compile(model.forward, backend="eager")
    with pytest.raises(TypeError, match=r"torch\.compile\(model\.forward\)"):
        qlip.attach(model, make_processor("llava"))


# Adapters of the tower


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_of_the_tower_train_under_checkpoints_that_are_re_entered(kind):
    """PEFT's recipe for quantised models makes the embeddings require gradients, by hooks: as of the plain model."""
    plain, processor = make_language_model(kind), make_processor(kind)
    model, attached_processor = qlip.attach(copy.deepcopy(plain), processor, **UNSPLIT)
    found = []
    for whole, used in ((plain, processor), (model, attached_processor)):
        torch.manual_seed(0)  # of the adapters' weights
        whole.requires_grad_(False)
        whole.enable_input_require_grads()
        whole.gradient_checkpointing_enable({"use_reentrant": True})
        adapted = get_peft_model(whole, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)).train()
        inputs = ask(used, ["USER: <image>\nwhat? ASSISTANT:"], [picture(56, 56)])
        adapted(**inputs, labels=inputs["input_ids"]).loss.backward()
        gradients = {name: weight.grad for name, weight in adapted.named_parameters() if "lora" in name}
        found.append({name: gradient for name, gradient in gradients.items() if gradient is not None})
    assert any("vision" in name for name in found[0]) and found[0].keys() == found[1].keys()
    if kind != "llava_next":  # whose unsplit tree is not its tiles
        for name, gradient in found[0].items():
            torch.testing.assert_close(found[1][name], gradient, atol=1e-5, rtol=1e-3)


# Calls as the model's own class has them


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_as_tuples(kind):
    model, processor = qlip.attach(make_language_model(kind), make_processor(kind), **TREE)
    inputs = ask(processor, PROMPTS[:1], PICTURES[1:2])
    with torch.no_grad():
        found, expected = model(**inputs, return_dict=False), model(**inputs)
    assert isinstance(found, tuple) and torch.equal(found[0], expected.logits)


def test_arguments_without_names_have_the_order_of_the_models_class():
    model, processor = qlip.attach(make_language_model("llava_next"), make_processor("llava_next"), **TREE)
    inputs = ask(processor, PROMPTS[:1], PICTURES[1:2])
    own = [inputs.pop(name) for name in ("input_ids", "pixel_values", "image_sizes", "attention_mask")]
    with torch.no_grad():
        found = model(*own, **inputs).logits
        expected = model(input_ids=own[0], pixel_values=own[1], image_sizes=own[2], attention_mask=own[3], **inputs)
    assert torch.equal(found, expected.logits)


def test_the_trunk_takes_arguments_without_names_as_its_class_does():
    model, _ = qlip.attach(make_language_model("llava"), make_processor("llava"), **TREE)
    ids, mask = torch.randint(5, 200, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[1, :4] = 0
    with torch.no_grad():
        found, expected = model.model(ids, None, mask), model.model(input_ids=ids, attention_mask=mask)
    assert torch.equal(found.last_hidden_state, expected.last_hidden_state)


def test_wrong_calls_are_errors_as_everywhere():
    model, _ = qlip.attach(make_language_model("llava"), make_processor("llava"), **TREE)
    ids = torch.randint(5, 200, (1, 9))
    with pytest.raises(TypeError, match="got several values for input_ids"):
        model(ids, input_ids=ids)
    with pytest.raises(TypeError, match="unnamed arguments, not 60"):
        model(ids, *[None] * 59)


def test_the_class_of_an_attached_model_makes_plain_ones(tmp_path):
    plain, processor = make_language_model("llava"), make_processor("llava")
    kind, expected = type(plain), logits(plain, processor)
    model, attached_processor = qlip.attach(plain, processor, **UNSPLIT)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert type(loaded) is kind and type(type(model)(model.config)) is kind
    assert torch.equal(logits(loaded, processor), expected)
    again, used = qlip.attach(loaded, processor)
    assert torch.equal(logits(again, used), logits(model, attached_processor))
