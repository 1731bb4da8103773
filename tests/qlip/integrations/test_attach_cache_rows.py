"""Caches whose rows change between turns: each row continues as its conversation would alone."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from transformers import StaticCache

from tests.qlip.integrations.models import GREEDY, TURN_SETTINGS, VOCABULARY, ask, attached, pair_kinds, picture

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


@pytest.fixture(scope="module", params=pair_kinds("defaults", "sequential"), ids="-".join)
def read(request):
    """A model, its inputs about an image each, and the cache that they leave."""
    kind, name = request.param
    model, processor = attached(kind, **TURN_SETTINGS[name])
    inputs = ask(processor, PROMPTS, PICTURES)
    with torch.no_grad():
        return model, inputs, model(**inputs, use_cache=True).past_key_values


@pytest.fixture
def talk(read):
    """`read` with a cache of its own."""
    model, inputs, cache = read
    return model, inputs, copy.deepcopy(cache)


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


@pytest.mark.parametrize(
    ("change", "made"),
    [(change, "itself") for change in CHANGES]
    + [("reorder_cache", "pickle"), ("batch_repeat_interleave", "deepcopy"), ("batch_select_indices", "pickle")],
)
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
    model, processor = attached("llava", **TURN_SETTINGS["biased"])
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
    model, processor = attached("llava", **TURN_SETTINGS["biased"])
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
    model, processor = attached("llava", **TURN_SETTINGS["biased"])
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
    model, processor = attached("llava", **TURN_SETTINGS["biased"])
    inputs = ask(processor, PROMPTS, PICTURES)
    cache = StaticCache(model.config.get_text_config(), max_cache_len=200)
    model(**inputs, past_key_values=cache)
    cache.reorder_cache(torch.tensor([1, 0]))
    assert isinstance(cache, StaticCache) and type(cache).__name__ == "StaticCache"
    new = turn(2)
    mask = torch.cat([inputs["attention_mask"][[1, 0]], torch.ones_like(new)], dim=1)
    logits = model(input_ids=new, attention_mask=mask, past_key_values=cache).logits
    torch.testing.assert_close(logits, expected_logits(model, inputs, [1, 0], new), atol=1e-4, rtol=0)


QUESTIONS = (5, 2)
"""Tokens of the next question of each row; the shorter one is padded on its left."""


def padded_turn() -> tuple[torch.Tensor, torch.Tensor]:
    """Questions of different lengths, (2, 5), and their mask."""
    new = turn(2)
    mask = torch.tensor([[0] * (5 - count) + [1] * count for count in QUESTIONS])
    return new * mask, mask


@torch.no_grad()
def alone(model, inputs, row: int, tokens: torch.Tensor) -> torch.Tensor:
    """Logits of the last token of a row's own conversation, which has no padding and no cache."""
    real = inputs["attention_mask"][row] != 0
    one = {name: value[row : row + 1] for name, value in inputs.items() if name not in ("pixel_values", "input_ids")}
    patches = (inputs["leaf_boxes"][:, :, 2] > 0).sum(1).tolist()
    one["pixel_values"] = inputs["pixel_values"].split(patches)[row]
    one["input_ids"] = torch.cat([inputs["input_ids"][row][real], tokens])[None]
    one["attention_mask"] = torch.ones_like(one["input_ids"])
    return model(**one).logits[0, -1]


def first_logits(model, **inputs) -> torch.Tensor:
    """Logits from which `generate` takes its first token."""
    return model.generate(**inputs, **GREEDY, output_logits=True, return_dict_in_generate=True).logits[0]


def test_questions_of_different_lengths_continue_as_each_would_alone(talk):
    model, inputs, cache = talk
    new, real = padded_turn()
    ids = torch.cat([inputs["input_ids"], new], dim=1)
    mask = torch.cat([inputs["attention_mask"], real], dim=1)
    expected = torch.stack([alone(model, inputs, row, new[row, -QUESTIONS[row] :]) for row in range(2)])
    logits = first_logits(model, input_ids=ids, attention_mask=mask, past_key_values=copy.deepcopy(cache))
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    with torch.no_grad():
        logits = model(input_ids=new, attention_mask=mask, past_key_values=cache).logits[:, -1]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


def test_an_answer_that_ended_earlier_takes_no_positions_in_the_turns_after_it(talk):
    """Its row is padded up to the other's end, then the other's question on its left."""
    model, inputs, cache = talk
    answers, ended = turn(2), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    mask = torch.cat([inputs["attention_mask"], ended], dim=1)
    with torch.no_grad():
        model(input_ids=answers * ended, attention_mask=mask, past_key_values=cache)
    new, real = padded_turn()
    said = [torch.cat([answers[row][ended[row] != 0], new[row][real[row] != 0]]) for row in range(2)]
    expected = torch.stack([alone(model, inputs, row, said[row]) for row in range(2)])
    ids = torch.cat([inputs["input_ids"], answers * ended, new], dim=1)
    logits = first_logits(model, input_ids=ids, attention_mask=torch.cat([mask, real], dim=1), past_key_values=cache)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_return_sequences": 3, "do_sample": True}], ids=str)
def test_several_answers_are_generated_from_a_cache_that_was_repeated_for_them(kind, options):
    model, processor = attached(kind, **TURN_SETTINGS["biased"])
    start = ask(processor, ["see <image>"], PICTURES[1:])
    with torch.no_grad():
        cache = model(**start, use_cache=True).past_key_values
    cache.batch_repeat_interleave(3)
    ids = torch.cat([start["input_ids"], turn(1)], dim=1)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    options = {
        "do_sample": False,
        "max_new_tokens": 4,
        "output_logits": True,
        "return_dict_in_generate": True,
        **options,
    }
    torch.manual_seed(0)
    expected = model.generate(**{**start, **given}, **options)
    torch.manual_seed(0)
    said = model.generate(**given, past_key_values=cache, **options)
    assert torch.equal(said.sequences, expected.sequences)
    torch.testing.assert_close(said.logits[0], expected.logits[0], atol=1e-5, rtol=0)


def test_answers_cannot_be_repeated_from_rows_that_differ(kind):
    model, processor = attached(kind, **TURN_SETTINGS["biased"])
    inputs = ask(processor, PROMPTS, PICTURES)
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
    ids = torch.cat([inputs["input_ids"][:1], turn(1)], dim=1)
    with pytest.raises(ValueError, match="the cache holds 2 rows with images, and 1 are given, each for 2 answers"):
        model.generate(input_ids=ids, past_key_values=cache, num_beams=2, **GREEDY)
