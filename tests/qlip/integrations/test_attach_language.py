"""qlip.attach on transformers' LLaVA models: their outputs without QLIP are kept, and `generate` works on leaves."""

from __future__ import annotations

import copy

import pytest
import torch

import qlip
from tests.qlip.integrations.models import (
    GREEDY,
    IMAGE_TOKEN,
    NATIVE,
    PICTURES,
    PROMPTS,
    TEXT,
    TREE,
    ask,
    attached,
    make_language_model,
    make_processor,
    picture,
)

KINDS = ["llava", "llava_siglip", "vipllava", "llava_next"]
UNIFORM = {"alpha": 0.0, "max_tokens": None}
SETTINGS = {
    "defaults": {"alpha": 0.3},
    "raster": TREE,
    "sequential": {**TREE, "llm_positions": "sequential"},
    "biased": {**TREE, "llm_size_bias": 1.0, "size_bias": 0.5},
    "native weight": {**TREE, "llm_weight": "native"},
    "thumbnail": {**TREE, "thumbnail": True, "llm_size_bias": 0.5},
}

ENDS_IN_A_LARGE_LEAF = picture(112, 112, 1)
ENDS_IN_A_LARGE_LEAF.paste((128, 128, 128), (56, 56, 112, 112))


def rows():
    left = iter(PICTURES)
    return [(prompt, [next(left) for _ in range(prompt.count("<image>"))]) for prompt in PROMPTS]


@pytest.mark.parametrize("kind", ["llava", "vipllava"])
@torch.no_grad()
def test_the_configurations_feature_layer_is_read_at_every_call(kind):
    model, processor = attached(kind, **UNIFORM)
    inputs = ask(processor, PROMPTS[:1], [picture(NATIVE, NATIVE, 0)] * PROMPTS[0].count("<image>"))
    before = model(**inputs).logits
    name, other = ("vision_feature_layers", [1, -1, -2]) if kind == "vipllava" else ("vision_feature_layer", 1)
    setattr(model.config, name, other)
    plain = make_language_model(kind)
    setattr(plain.config, name, other)
    theirs, processor = qlip.attach(plain, make_processor(kind), **UNIFORM)
    torch.testing.assert_close(model(**inputs).logits, theirs(**inputs).logits)
    assert not torch.allclose(model(**inputs).logits, before, atol=1e-3)


@torch.no_grad()
def test_options_of_generate_that_do_not_go_with_images_are_named():
    model, processor = attached("llava", **UNIFORM)
    inputs = ask(processor, PROMPTS[:1], [picture(NATIVE, NATIVE, 0)] * PROMPTS[0].count("<image>"))
    with pytest.raises(ValueError, match="prefill_chunk_size is 4; a prompt with images runs whole, leave it out"):
        model.generate(**inputs, **GREEDY, prefill_chunk_size=4)
    with pytest.raises(ValueError, match="cache_implementation is 'paged'; continuous batching takes token ids alone"):
        model.generate(**inputs, **GREEDY, cache_implementation="paged")
    with pytest.raises(ValueError, match="assistant_model is a LlavaForConditionalGeneration without QLIP"):
        model.generate(**inputs, **GREEDY, assistant_model=make_language_model("llava"))


@pytest.mark.parametrize("prompt", ["USER: <image>\nwhat? ASSISTANT:", "see <image>"], ids=["text", "image"])
@torch.no_grad()
def test_assisted_decoding_gives_the_greedy_answer_from_its_first_step_on(model_and_processor, prompt):
    """Candidates follow the prompt's embeddings there; after an image they begin at its end, not at its last token."""
    model, processor = model_and_processor
    inputs = ask(processor, [prompt], [picture(56, 98, 2)])
    expected = model.generate(**inputs, **GREEDY)
    for helper in ({"prompt_lookup_num_tokens": 3}, {"assistant_model": copy.deepcopy(model)}):
        assert torch.equal(model.generate(**inputs, **GREEDY, **helper), expected)


@pytest.mark.parametrize("kind", ["llava", "llava_siglip", "llava_dinov2", "vipllava"])
@torch.no_grad()
def test_at_the_native_grid_logits_and_answers_are_the_untouched_models(kind):
    """Raster positions and both biases must change nothing there."""
    natives = [picture(NATIVE, NATIVE, seed) for seed in range(4)]
    model, processor = make_language_model(kind), make_processor(kind)
    inputs = ask(processor, PROMPTS, natives)
    expected = model(**inputs, position_ids=(inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)).logits
    answer = model.generate(**inputs, **GREEDY)
    model, processor = qlip.attach(model, processor, **UNIFORM, llm_size_bias=0.7, size_bias=0.7, llm_weight="native")
    ours = ask(processor, PROMPTS, natives)
    assert torch.equal(ours["input_ids"], inputs["input_ids"])
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(model(**ours).logits[real], expected[real], atol=1e-4, rtol=0)
    assert expected.std() > 0.05
    assert torch.equal(model.generate(**ours, **GREEDY), answer)


@torch.no_grad()
def test_weights_and_a_window_go_together():
    """At the native grid weights change nothing; with leaves the window still counts."""
    heads = {"num_key_value_heads": TEXT["num_attention_heads"]}
    window = {"text_config": {**TEXT, **heads, "model_type": "mistral", "sliding_window": 8}}
    natives = [picture(NATIVE, NATIVE, seed) for seed in range(4)]
    model, processor = make_language_model("llava", **window), make_processor("llava")
    inputs = ask(processor, PROMPTS, natives)
    expected = model(**inputs, position_ids=(inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)).logits
    model, processor = qlip.attach(model, processor, **UNIFORM, llm_size_bias=0.7, llm_weight="native")
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(
        model(**ask(processor, PROMPTS, natives)).logits[real], expected[real], atol=1e-4, rtol=0
    )
    settings = {**TREE, "llm_size_bias": 1.0}
    answers = {}
    for size in (8, 4096):
        window["text_config"]["sliding_window"] = size
        model, processor = qlip.attach(make_language_model("llava", **window), make_processor("llava"), **settings)
        answers[size] = model(**ask(processor, PROMPTS, PICTURES)).logits[:, -1]
    assert (answers[8] - answers[4096]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_pixels_without_leaves_are_cut_by_the_model(kind):
    model, processor = attached(kind, **TREE)
    inputs = ask(processor, PROMPTS[:2], PICTURES[:3])
    expected, answer = model(**inputs).logits, model.generate(**inputs, **GREEDY)
    pixels = processor.image_processor(PICTURES[:3], return_tensors="pt")["pixel_values"]
    text = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    torch.testing.assert_close(model(**text, pixel_values=pixels).logits, expected)
    assert torch.equal(model.generate(**text, pixel_values=pixels, **GREEDY), answer)


MODELS = [
    ("llava", "defaults"),
    ("llava", "native weight"),
    ("llava_siglip", "thumbnail"),
    ("vipllava", "biased"),
    ("llava_next", "sequential"),
]
"""Each kind and each of the settings once; "raster" is "sequential" without its positions."""


@pytest.fixture(scope="module", params=MODELS, ids=str)
def model_and_processor(request):
    kind, name = request.param
    return attached(kind, **SETTINGS[name])


@torch.no_grad()
def test_a_batch_answers_as_its_rows_alone(model_and_processor):
    model, processor = model_and_processor
    inputs = ask(processor, PROMPTS, PICTURES)
    together = model.generate(**inputs, **GREEDY)[:, inputs["input_ids"].shape[1] :]
    logits = model(**inputs).logits
    for index, (prompt, pictures) in enumerate(rows()):
        alone = ask(processor, [prompt], pictures)
        length = alone["input_ids"].shape[1]
        assert torch.equal(model.generate(**alone, **GREEDY)[0, length:], together[index])
        torch.testing.assert_close(logits[index, -length:], model(**alone).logits[0], atol=1e-4, rtol=0)


@torch.no_grad()
def test_cached_generation_equals_a_full_pass_over_the_longer_prompt(model_and_processor):
    """Positions continue after the image's span, and the key bias stays, through the cache."""
    model, processor = model_and_processor
    inputs = ask(processor, ["<image> and <image>"], [PICTURES[1], ENDS_IN_A_LARGE_LEAF])
    said = model.generate(**inputs, **GREEDY, return_dict_in_generate=True, output_logits=True)
    length = inputs["input_ids"].shape[1]
    for step, logits in enumerate(said.logits):
        ids = said.sequences[:, : length + step]
        full = model(**{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits[:, -1]
        torch.testing.assert_close(logits, full, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_static_cache_gives_the_same_answers(model_and_processor):
    model, processor = model_and_processor
    for prompts, pictures in ((PROMPTS, PICTURES), (PROMPTS[1:2], PICTURES[1:3])):  # with padding and without
        inputs = ask(processor, prompts, pictures)
        expected = model.generate(**inputs, **GREEDY)
        static = model.generate(**inputs, **GREEDY, cache_implementation="static", disable_compile=True)
        assert torch.equal(static, expected)


@torch.no_grad()
def test_beams_and_prompt_lookup_agree_with_greedy_search(model_and_processor):
    model, processor = model_and_processor
    inputs = ask(processor, PROMPTS[1:2], PICTURES[1:3])
    options = {"do_sample": False, "max_new_tokens": 4, "return_dict_in_generate": True, "output_scores": True}
    greedy = model.generate(**inputs, **options)
    looked_up = model.generate(**inputs, **options, prompt_lookup_num_tokens=2)
    assert torch.equal(looked_up.sequences, greedy.sequences)
    beam = model.generate(**inputs, num_beams=3, length_penalty=0.0, **options)
    several = model.generate(**inputs, num_beams=3, num_return_sequences=3, length_penalty=0.0, **options)
    assert torch.equal(several.sequences[:1], beam.sequences)
    new = greedy.sequences[0, inputs["input_ids"].shape[1] :]
    scores = [s.log_softmax(-1)[0, token] for s, token in zip(greedy.scores, new, strict=True)]
    assert beam.sequences_scores[0] >= sum(scores) - 1e-4


@torch.no_grad()
def test_beams_weigh_several_images_as_a_full_pass_does(model_and_processor):
    """The score of the best beam is the sum that the model alone, uncached, gives its tokens."""
    model, processor = model_and_processor
    inputs = ask(processor, PROMPTS[1:2], PICTURES[1:3])
    options = {"do_sample": False, "max_new_tokens": 4, "return_dict_in_generate": True, "output_scores": True}
    beam = model.generate(**inputs, num_beams=3, length_penalty=0.0, **options)
    length = inputs["input_ids"].shape[1]
    longer = {**inputs, "input_ids": beam.sequences, "attention_mask": torch.ones_like(beam.sequences)}
    logits = model(**longer).logits[0, length - 1 : -1].log_softmax(-1)
    score = logits.gather(1, beam.sequences[0, length:, None]).sum()
    torch.testing.assert_close(beam.sequences_scores[0], score, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_second_turn_continues_from_the_cache_of_the_first(model_and_processor):
    model, processor = model_and_processor
    first = ask(processor, ["<image> and <image>?"], PICTURES[1:3])
    said = model.generate(**first, **GREEDY, return_dict_in_generate=True)
    more = torch.cat([said.sequences, processor.tokenizer(" why?", return_tensors="pt").input_ids], dim=1)
    second = {**first, "input_ids": more, "attention_mask": torch.ones_like(more)}
    expected = model.generate(**second, **GREEDY)
    assert torch.equal(model.generate(**second, past_key_values=said.past_key_values, **GREEDY), expected)


def test_image_becomes_as_many_tokens_as_the_tower_makes_of_it(model_and_processor):
    model, processor = model_and_processor
    next_ = hasattr(model.model, "image_newline")  # its newlines: test_attach_next.py
    for image in PICTURES:
        inputs = ask(processor, ["a <image> b"], [image])
        pixels = processor.image_processor(image, return_tensors="pt")["pixel_values"]
        vision = model.attachment.vision
        tree = vision.partition(pixels[0])
        packed = {name: inputs[name] for name in inputs if name not in ("input_ids", "attention_mask")}
        made = len(model.get_image_features(**packed).pooler_output[0])
        assert int((inputs["input_ids"] == IMAGE_TOKEN).sum()) == made
        assert next_ or made == len(tree) + 16 * vision.qlip.thumbnail


@torch.no_grad()
def test_text_stands_where_the_native_grid_puts_it():
    """However many leaves an image has, the text after it starts 16 positions after its start."""
    model, processor = attached("llava", **TREE)
    for image in PICTURES:
        inputs = ask(processor, ["ab<image>c"], [image])
        placed = model.place_images(inputs["input_ids"], None, inputs["leaf_boxes"], inputs["leaf_grids"])
        assert placed.positions[0, [0, 1, -1]].tolist() == [0, 1, 2 + 16]
        assert placed.positions[0, 2:-1].max() <= 2 + 15
        assert placed.end.tolist() == [2 + 16 + 1]


@torch.no_grad()
def test_positions_and_biases_reach_the_language_model():
    logits = []
    for name in ("raster", "sequential", "biased", "native weight"):
        model, processor = attached("llava", **SETTINGS[name])
        logits.append(model(**ask(processor, PROMPTS[:1], PICTURES[1:2])).logits)
    assert all(not torch.allclose(logits[0], other, atol=1e-3) for other in logits[1:])


@torch.no_grad()
def test_positions_of_ones_own_are_kept_and_the_bias_stays():
    model, processor = attached("llava", alpha=0.3)
    inputs = ask(processor, PROMPTS[:1], PICTURES[1:2])
    placed = model.place_images(inputs["input_ids"], None, inputs["leaf_boxes"], inputs["leaf_grids"])
    expected, answer = model(**inputs).logits, model.generate(**inputs, **GREEDY)
    assert torch.equal(model(**inputs, position_ids=placed.positions).logits, expected)
    counted = torch.arange(inputs["input_ids"].shape[1])[None]
    assert not torch.allclose(model(**inputs, position_ids=counted).logits, expected, atol=1e-3)
    assert torch.equal(model.generate(**inputs, position_ids=placed.positions, **GREEDY), answer)


@torch.no_grad()
def test_your_own_decoding_loop(model_and_processor):
    """As docs/TRANSFORMERS.md describes it."""
    model, processor = model_and_processor
    inputs = ask(processor, PROMPTS[1:2], PICTURES[1:3])
    placed = model.place_images(**{name: inputs[name] for name in inputs if name != "pixel_values"})
    bias = qlip.key_bias(placed.sizes)
    output = model(**inputs, use_cache=True)
    tokens = [output.logits[:, -1:].argmax(-1)]
    for step in range(GREEDY["max_new_tokens"] - 1):
        output = model(
            input_ids=tokens[-1],
            past_key_values=output.past_key_values,
            position_ids=placed.end[:, None] + step,
            key_bias=bias,
        )
        tokens.append(output.logits[:, -1:].argmax(-1))
    expected = model.generate(**inputs, **GREEDY)[:, inputs["input_ids"].shape[1] :]
    assert torch.equal(torch.cat(tokens, dim=1), expected)
