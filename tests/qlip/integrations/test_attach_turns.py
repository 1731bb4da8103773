"""A conversation that continues from its cache without its images, as transformers' LLaVA allows it."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch._dynamo.utils import counters
from transformers import CompileConfig, StaticCache

import qlip
from qlip.integrations.continuation import read_continuation
from tests.qlip.integrations.models import (
    GREEDY,
    PICTURES,
    TREE,
    TURN_SETTINGS,
    ask,
    attached,
    make_vision_model,
    pair_kinds,
    picture,
)

SETTINGS = {**TURN_SETTINGS, "plain": {**TREE, "llm_positions": "sequential"}}
QUESTION = torch.tensor([[40, 41, 42, 43]])
TURN = {**GREEDY, "return_dict_in_generate": True, "output_logits": True}


@pytest.fixture(scope="module", params=pair_kinds("defaults", "plain"), ids="-".join)
def first_turn(request):
    """A model, its inputs about two images, and its first answer with the cache."""
    kind, name = request.param
    model, processor = attached(kind, **SETTINGS[name])
    inputs = ask(processor, ["<image> and <image>: which?"], PICTURES[1:3])
    return model, inputs, model.generate(**inputs, **TURN)


@pytest.fixture
def talk(first_turn):
    """`first_turn` with a cache of its own."""
    model, inputs, said = first_turn
    return model, inputs, copy.deepcopy(said)


@torch.no_grad()
def whole_pass(model, inputs, ids):
    """The logits of a full pass over a conversation, without a cache and with all images."""
    return model(**{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits


def check(model, inputs, said) -> None:
    """Each new token's logits are those of a full pass."""
    count = len(said.logits)
    expected = whole_pass(model, inputs, said.sequences)[:, -count - 1 : -1]
    torch.testing.assert_close(torch.stack(said.logits, dim=1), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("form", ["whole conversation", "new tokens", "images again"])
def test_a_second_and_a_third_turn_have_the_logits_of_a_full_pass(talk, form):
    model, inputs, said = talk
    if form == "whole conversation":
        check(model, inputs, said)
    for _ in range(2):
        cache, ids = said.past_key_values, torch.cat([said.sequences, QUESTION], dim=1)
        mask = torch.ones_like(ids)
        images = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
        new = ids[:, cache.get_seq_length() :]
        given = {
            "whole conversation": {"input_ids": ids, "attention_mask": mask},
            "new tokens": {"input_ids": new, "attention_mask": mask},
            "images again": {"input_ids": ids, "attention_mask": mask, **images},
        }[form]
        said = model.generate(**given, past_key_values=cache, **TURN)
        if form == "new tokens":
            said.sequences = torch.cat([ids[:, : -new.shape[1]], said.sequences], dim=1)
        check(model, inputs, said)


@torch.no_grad()
def test_a_loop_of_ones_own_needs_no_positions_either(talk):
    model, inputs, _ = talk
    output = model(**inputs, use_cache=True)
    ids, cache = torch.cat([inputs["input_ids"], QUESTION], dim=1), output.past_key_values
    for i in range(QUESTION.shape[1]):
        output = model(input_ids=QUESTION[:, i : i + 1], past_key_values=cache)
        expected = whole_pass(model, inputs, ids[:, : ids.shape[1] - QUESTION.shape[1] + i + 1])[:, -1]
        torch.testing.assert_close(output.logits[:, -1], expected, atol=1e-4, rtol=0)


def test_a_second_turn_by_prompt_lookup_is_the_greedy_one(talk):
    model, inputs, said = talk
    ids = torch.cat([said.sequences, QUESTION, QUESTION], dim=1)
    both = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    expected = model.generate(**both, **GREEDY)
    for helper in ({"prompt_lookup_num_tokens": 3}, {}):
        cache = copy.deepcopy(said.past_key_values)
        assert torch.equal(model.generate(**both, past_key_values=cache, **GREEDY, **helper), expected)


@torch.no_grad()
def test_what_a_cache_cannot_continue_is_named():
    model, processor = attached("llava", **SETTINGS["biased"])
    inputs = ask(processor, ["<image> and <image>: which?"], PICTURES[1:3])
    cache = model(**inputs, use_cache=True).past_key_values
    end = read_continuation(cache, 1).images
    assert 0 < end < cache.get_seq_length()
    more = ask(processor, ["see <image>"], PICTURES[:1])
    with pytest.raises(ValueError, match="new images were given with a cache, .*; or give position_ids and key_bias"):
        model(**{**more, "attention_mask": None}, past_key_values=cache)
    with pytest.raises(ValueError, match="the cache holds 1 rows with images, and 2 are given"):
        model(input_ids=QUESTION.expand(2, -1), past_key_values=cache)
    cache.crop(end - cache.get_seq_length())
    model(input_ids=QUESTION[:, :1], past_key_values=cache)
    cache.crop(-2)
    with pytest.raises(ValueError, match=f"cropped to {end - 1} tokens, and the last image ends at {end}; give all"):
        model(input_ids=QUESTION[:, :1], past_key_values=cache)


@torch.no_grad()
def test_encoded_images_without_their_places_are_named_by_generate_too():
    model, processor = attached("llava", **SETTINGS["biased"])
    inputs = ask(processor, ["see <image>"], PICTURES[:1])
    prompt = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    images = {name: value for name, value in inputs.items() if name not in prompt}
    encoded = {"image": model.get_image_features(**images)}
    embeds = model.model.embed(inputs["input_ids"], None, encoded["image"].pooler_output)
    for given in ({"mm_encoder_outputs": encoded}, {"inputs_embeds": embeds}):
        with pytest.raises(
            ValueError, match="encoded images are given without leaf_boxes .* position_ids and key_bias"
        ):
            model.generate(**prompt, **given, **GREEDY)


@torch.no_grad()
def test_the_inner_model_takes_positions_and_bias():
    model, processor = attached("llava", **SETTINGS["biased"])
    inputs = ask(processor, ["<image> and <image>: which?", "see <image>"], PICTURES[:3])
    placed = model.place_images(*(inputs[n] for n in ("input_ids", "attention_mask", "leaf_boxes", "leaf_grids")))
    bias = qlip.key_bias(placed.sizes)
    expected = model(**inputs, output_hidden_states=True).hidden_states[-1]
    hidden = model.model(**inputs, position_ids=placed.positions, key_bias=bias).last_hidden_state
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(hidden[real], expected[real], atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="LlavaModel is given images without key_bias: call the model around it"):
        model.model(**inputs, position_ids=placed.positions)


@torch.no_grad()
def test_a_bias_that_is_given_is_used_by_generate_too():
    model, processor = attached("llava", **SETTINGS["biased"])
    inputs = ask(processor, ["see <image> now"], PICTURES[1:2])
    bias = torch.zeros_like(inputs["input_ids"], dtype=torch.float32)
    said = model.generate(**inputs, key_bias=bias, **TURN)
    torch.testing.assert_close(said.logits[0], model(**inputs, key_bias=bias).logits[:, -1], atol=1e-4, rtol=0)
    assert not torch.allclose(said.logits[0], model(**inputs).logits[:, -1], atol=1e-3)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize(("target", "first"), [("patch_embedding", "attach"), ("position_embedding", "adapter")])
@torch.no_grad()
def test_adapters_of_the_embeddings_are_run(kind, target, first):
    """PEFT wraps the layer: its weight alone is that of the base."""
    uniform = {"alpha": 0.0, "max_tokens": None}
    config = LoraConfig(r=2, target_modules=[target], init_lora_weights=False)
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    expected = get_peft_model(make_vision_model(kind), config)(pixels).last_hidden_state
    torch.manual_seed(1)
    model = make_vision_model(kind)
    if first == "attach":
        qlip.attach(model, **uniform)
    tuned = get_peft_model(model, config)
    if first == "adapter":
        qlip.attach(model, **uniform)
    torch.testing.assert_close(tuned(pixels).last_hidden_state, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("part", ["pre_layrnorm", "embeddings", "encoder"])
def test_a_part_of_the_tower_that_was_replaced_is_not_passed_over(part):
    model, processor = attached("llava")
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=[part]))
    with pytest.raises(TypeError, match=r"vision tower was replaced .*after qlip\.attach"):
        tuned(**ask(processor, ["see <image>"], [picture(56, 56, 0)]))


def test_a_tower_in_another_dtype_keeps_the_bias():
    model, processor = attached("llava", **SETTINGS["biased"])
    model.model.vision_tower.to(torch.bfloat16)
    model.model.multi_modal_projector.to(torch.bfloat16)
    assert model(**ask(processor, ["see <image>"], PICTURES[:1])).logits.isfinite().all()


@torch.no_grad()
def test_a_cache_that_was_reset_is_as_new():
    model, processor = attached("llava", **SETTINGS["biased"])
    inputs = ask(processor, ["see <image>"], PICTURES[1:2])
    cache = StaticCache(model.config.get_text_config(), max_cache_len=200)
    model(**inputs, past_key_values=cache)
    assert read_continuation(cache, 1) is not None
    cache.reset()
    expected = model(input_ids=QUESTION).logits
    torch.testing.assert_close(model(input_ids=QUESTION, past_key_values=cache).logits, expected, atol=1e-4, rtol=0)
    assert read_continuation(cache, 1) is None


def test_steps_with_a_static_cache_are_compiled_once(monkeypatch):
    """What is noted on the cache must be no guard of the compiler."""
    model, processor = attached("llava", **SETTINGS["biased"])
    inputs = ask(processor, ["see <image>"], PICTURES[1:2])
    expected = model.generate(**inputs, do_sample=False, max_new_tokens=12)
    monkeypatch.setattr(model, "_valid_auto_compile_criteria", lambda *_: True, raising=False)  # as on a GPU
    torch._dynamo.reset()
    counters.clear()
    config = CompileConfig(backend="eager", fullgraph=True, mode=None, dynamic=False)
    options = {"cache_implementation": "static", "compile_config": config, "do_sample": False, "max_new_tokens": 12}
    assert torch.equal(model.generate(**inputs, **options), expected)
    assert counters["stats"]["unique_graphs"] == 1
