"""Caches whose rows change between turns: each row continues as its conversation would alone."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from transformers import StaticCache

from tests.qlip.integrations.models import GREEDY, TREE, VOCABULARY, ask, attached, picture

SETTINGS = {
    "defaults": {},
    "biased": {**TREE, "llm_size_bias": 1.0},
    "sequential": {**TREE, "llm_positions": "sequential", "llm_size_bias": 1.0},
}
PROMPTS = ["<image> and", "see it: <image> now"]
PICTURES = [picture(56, 56, 0), picture(168, 56, 1)]
"""Pictures of different lengths, so that positions and biases of their conversations differ."""

CHANGES = {
    "reorder_cache": (lambda cache: cache.reorder_cache(torch.tensor([1, 0])), [1, 0]),
    "batch_select_indices": (lambda cache: cache.batch_select_indices(torch.tensor([1])), [1]),
    "batch_select_indices by mask": (lambda cache: cache.batch_select_indices(torch.tensor([False, True])), [1]),
    "batch_repeat_interleave": (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1]),
}
COPIES = {
    "itself": lambda cache: cache,
    "deepcopy": copy.deepcopy,
    "pickle": lambda cache: pickle.loads(pickle.dumps(cache)),
}


@pytest.fixture(params=["llava", "llava_next", "vipllava"])
def kind(request):
    return request.param


@pytest.fixture(params=SETTINGS)
def talk(request, kind):
    """A model, its inputs about an image each, and the cache that they leave."""
    model, processor = attached(kind, **SETTINGS[request.param])
    inputs = ask(processor, PROMPTS, PICTURES)
    with torch.no_grad():
        return model, inputs, model(**inputs, use_cache=True).past_key_values


def turn(rows: int) -> torch.Tensor:
    return torch.randint(4, VOCABULARY, (rows, 5), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def expected_logits(model, inputs, rows: list[int], new: torch.Tensor) -> torch.Tensor:
    """The logits of `new` in full passes over the conversations `rows`, each with its own image and no cache."""
    images = {name: inputs[name] for name in ("leaf_boxes", "leaf_grids", "image_sizes") if name in inputs}
    patches = (inputs["leaf_boxes"][:, :, 2] > 0).sum(1).tolist()
    pixels = inputs["pixel_values"].split(patches)
    found = []
    for row, tokens in zip(rows, new, strict=True):
        ids = torch.cat([inputs["input_ids"][row], tokens])[None]
        mask = torch.cat([inputs["attention_mask"][row], torch.ones_like(tokens)])[None]
        own = {name: value[row : row + 1] for name, value in images.items()}
        logits = model(input_ids=ids, attention_mask=mask, pixel_values=pixels[row], **own).logits
        found.append(logits[:, -len(tokens) :])
    return torch.cat(found)


@pytest.mark.parametrize("made", COPIES)
@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_each_row_continues_as_its_conversation_alone(talk, change, made):
    model, inputs, cache = talk
    act, rows = CHANGES[change]
    act(cache := COPIES[made](cache))
    new = turn(len(rows))
    mask = torch.cat([inputs["attention_mask"][rows], torch.ones_like(new)], dim=1)
    logits = model(input_ids=new, attention_mask=mask, past_key_values=cache).logits
    torch.testing.assert_close(logits, expected_logits(model, inputs, rows, new), atol=1e-4, rtol=0)


@torch.no_grad()
def test_rows_that_share_their_positions_may_change_their_order():
    model, processor = attached("llava", **SETTINGS["biased"])
    inputs = ask(processor, [PROMPTS[0]] * 2, [PICTURES[0]] * 2)
    placed = model.place_images(*(inputs[name] for name in ("input_ids", "attention_mask", "leaf_boxes", "leaf_grids")))
    cache = model(**inputs, position_ids=placed.positions[:1], use_cache=True).past_key_values
    cache.reorder_cache(torch.tensor([1, 0]))
    new = turn(2)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(new)], dim=1)
    logits = model(input_ids=new, attention_mask=mask, past_key_values=cache).logits
    torch.testing.assert_close(logits, expected_logits(model, inputs, [1, 0], new), atol=1e-4, rtol=0)


@torch.no_grad()
def test_several_questions_about_one_image_are_generated_from_its_cache():
    model, processor = attached("llava", **SETTINGS["biased"])
    start = ask(processor, ["see <image>"], PICTURES[1:])
    cache = model(**start, use_cache=True).past_key_values
    cache.batch_repeat_interleave(2)
    ids = torch.cat([start["input_ids"].expand(2, -1), turn(2)], dim=1)
    said = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache, **GREEDY)
    for row in range(2):
        alone = {**start, "input_ids": ids[row : row + 1], "attention_mask": torch.ones_like(ids[:1])}
        assert torch.equal(said[row : row + 1], model.generate(**alone, **GREEDY))


@torch.no_grad()
def test_a_copy_and_its_cache_change_apart():
    model, processor = attached("llava", **SETTINGS["biased"])
    inputs = ask(processor, PROMPTS, PICTURES)
    cache = model(**inputs, use_cache=True).past_key_values
    other = copy.deepcopy(cache)
    other.reorder_cache(torch.tensor([1, 0]))
    new = turn(2)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(new)], dim=1)
    for rows, given in (([1, 0], other), ([0, 1], cache)):
        logits = model(input_ids=new, attention_mask=mask[rows], past_key_values=given).logits
        torch.testing.assert_close(logits, expected_logits(model, inputs, rows, new), atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_static_cache_is_reordered_and_stays_one():
    model, processor = attached("llava", **SETTINGS["biased"])
    inputs = ask(processor, PROMPTS, PICTURES)
    cache = StaticCache(model.config.get_text_config(), max_cache_len=200)
    model(**inputs, past_key_values=cache)
    cache.reorder_cache(torch.tensor([1, 0]))
    assert isinstance(cache, StaticCache) and type(cache).__name__ == "StaticCache"
    new = turn(2)
    mask = torch.cat([inputs["attention_mask"][[1, 0]], torch.ones_like(new)], dim=1)
    logits = model(input_ids=new, attention_mask=mask, past_key_values=cache).logits
    torch.testing.assert_close(logits, expected_logits(model, inputs, [1, 0], new), atol=1e-4, rtol=0)
