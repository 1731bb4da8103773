"""Generation with quadtree tokens: batches, caches and positions give what each prompt alone, uncached, gives."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from transformers import BatchEncoding, DynamicCache, GenerationConfig

from llava.constants import IMAGE_TOKEN_INDEX as IMAGE
from llava.model.builder import load_pretrained_model
from tests.llava.checkpoints import PICTURE, make_llava_checkpoint
from tests.llava.model.prompts import IMAGES, ROWS, images_of

TREE = {"criterion": "gradient", "coarsest": "any", "alpha": 0.7, "max_tokens": 90, "llm_size_bias": 0.0}
SETTINGS = {
    "defaults": {},
    "raster": TREE,
    "sequential": {**TREE, "llm_positions": "sequential"},
    "biased": {**TREE, "llm_size_bias": 1.0, "size_bias": 0.5},
    "native weight": {**TREE, "llm_weight": "native"},
    "thumbnail": {**TREE, "thumbnail": True, "llm_size_bias": 0.5},
    "floor": {**TREE, "max_tokens": None, "coarsest": "native"},
}
GREEDY = {"do_sample": False, "max_new_tokens": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_llava_checkpoint(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module", params=SETTINGS.values(), ids=SETTINGS.keys())
def model(request, folder):
    return load_pretrained_model(str(folder), device="cpu", qlip=request.param)[1]


@pytest.fixture(scope="module")
def biased(folder):
    """Raster positions and a key bias, which the settings of `model` have too."""
    return load_pretrained_model(str(folder), device="cpu", qlip=SETTINGS["biased"])[1]


def pad(rows: list[list[int]], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    ids = [torch.tensor(row) for row in rows]
    real = [torch.ones_like(row) for row in ids]
    return tuple(torch.nn.utils.rnn.pad_sequence(x, True, 0, side) for x in (ids, real))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"token_healing": True}, "token_healing is True; transformers re-tokenizes the prompt from its text"),
        ({"prefill_chunk_size": 16}, "prefill_chunk_size is 16; a prompt with images runs whole"),
        ({"cache_implementation": "paged"}, "is 'paged'; continuous batching takes token ids alone"),
        ({"assistant_model": object()}, "assistant_model is not supported by these classes; .*attach QLIP"),
    ],
)
def test_options_that_do_not_go_with_images_are_named(biased, options, words):
    with pytest.raises(ValueError, match=words):
        biased.generate(torch.tensor([ROWS[0]]), images=[PICTURE[0]], **GREEDY, **options)


@torch.no_grad()
def test_prompt_lookup_gives_the_greedy_answer(biased):
    prompt = {"inputs": torch.tensor([ROWS[1]]), "images": IMAGES[:2]}
    expected = biased.generate(**prompt, **{**GREEDY, "max_new_tokens": 12})
    found = biased.generate(**prompt, **{**GREEDY, "max_new_tokens": 12}, prompt_lookup_num_tokens=3)
    assert torch.equal(found, expected)


def test_a_mask_that_is_cut_to_the_new_tokens_covers_the_prompt_again(biased):
    """transformers 5.17 cuts it so in assisted decoding, where a prompt of embeddings has no ids."""
    prompt, ids = torch.zeros(1, 5, 64), torch.zeros(1, 0, dtype=torch.int64)
    inputs = biased.prepare_inputs_for_generation(
        ids, inputs_embeds=prompt, attention_mask=torch.ones(1, 0), position_ids=torch.arange(5)[None],
        past_key_values=DynamicCache(), is_first_iteration=True,
    )  # fmt: skip
    mask = inputs.get("attention_mask")
    assert mask is None or torch.equal(mask, torch.ones(1, 5))


@torch.no_grad()
def test_a_batch_answers_as_its_rows_alone(model):
    ids, mask = pad(ROWS, "right")
    together = model.generate(ids, images=IMAGES, attention_mask=mask, **GREEDY)
    assert together.shape == (4, 4)
    for row, images, answer in zip(ROWS, images_of(ROWS), together, strict=True):
        alone = model.generate(torch.tensor([row]), images=images or None, **GREEDY)
        assert torch.equal(alone[0], answer)


@torch.no_grad()
def test_the_caller_may_pad_on_either_side(biased):
    left, right = (pad(ROWS, side) for side in ("left", "right"))
    assert not torch.equal(left[0], right[0])
    answers = [biased.generate(ids, images=IMAGES, attention_mask=mask, **GREEDY) for ids, mask in (left, right)]
    assert torch.equal(*answers)


@torch.no_grad()
def test_logits_of_a_batch_are_those_of_its_rows_alone(model):
    ids, mask = pad(ROWS, "right")
    model.config.tokenizer_padding_side = "right"
    together = model(ids, attention_mask=mask, images=IMAGES).logits
    for row, images, logits in zip(ROWS, images_of(ROWS), together, strict=True):
        alone = model(torch.tensor([row]), images=images or None).logits[0]
        torch.testing.assert_close(logits[: len(alone)], alone, atol=1e-4, rtol=0)


def check_each_token(model, prompt: list[int]) -> None:
    """Compares a greedy answer with full passes over the prompt and what has been answered."""
    images = IMAGES[:2]
    answer = model.generate(torch.tensor([prompt]), images=images, **GREEDY)[0].tolist()
    for length in range(len(answer)):
        full = model(torch.tensor([prompt + answer[:length]]), images=images).logits[0, -1]
        assert int(full.argmax()) == answer[length]


@torch.no_grad()
def test_cached_generation_equals_a_full_pass_over_the_longer_prompt(model):
    """Positions continue after the image's span, and the key bias stays, through the cache."""
    check_each_token(model, ROWS[1])


@torch.no_grad()
def test_an_answer_may_begin_right_after_an_image(biased):
    check_each_token(biased, [1, IMAGE, 40, IMAGE])


@torch.no_grad()
def test_beam_search_with_one_beam_more_is_at_least_as_likely(biased):
    prompt, images = torch.tensor([ROWS[0]]), IMAGES[:1]
    options = {"do_sample": False, "max_new_tokens": 4, "return_dict_in_generate": True, "output_scores": True}
    beam = biased.generate(prompt, images=images, num_beams=3, length_penalty=0.0, **options)
    greedy = biased.generate(prompt, images=images, **options)
    scores = [s.log_softmax(-1)[0, token] for s, token in zip(greedy.scores, greedy.sequences[0], strict=True)]
    assert beam.sequences_scores[0] >= sum(scores) - 1e-4


@torch.no_grad()
def test_raster_positions_keep_text_where_the_native_grid_puts_it(folder):
    """However many leaves an image has, the text after it starts 64 positions after the image's start."""
    model = load_pretrained_model(str(folder), device="cpu", qlip=TREE)[1]
    for image in IMAGES:
        batch = model.splice_images(torch.tensor([[1, 20, IMAGE, 30]]), None, None, [image], "left")
        assert batch.placed.positions[0, -1] == 2 + 64
        assert batch.placed.end.tolist() == [2 + 64 + 1]
        assert batch.placed.positions[0, 2:-1].max() <= 2 + 63


@torch.no_grad()
def test_positions_and_biases_reach_the_language_model(folder):
    prompt = torch.tensor([ROWS[0]])
    logits = [
        load_pretrained_model(str(folder), device="cpu", qlip=SETTINGS[name])[1](prompt, images=IMAGES[1:2]).logits
        for name in ("raster", "sequential", "biased")
    ]
    assert not torch.allclose(logits[0], logits[1], atol=1e-3)
    assert not torch.allclose(logits[0], logits[2], atol=1e-3)


def test_errors_name_what_is_wrong(biased):
    with pytest.raises(ValueError, match="holds 2 <image>, but 1 images were given"):
        biased.generate(torch.tensor([ROWS[1]]), images=IMAGES[:1], **GREEDY)
    with pytest.raises(ValueError, match="holds 1 <image>, but 0 images were given"):
        biased(torch.tensor([ROWS[0]]))
    with pytest.raises(TypeError, match=r"an image is torch\.uint8"):
        biased.generate(torch.tensor([ROWS[0]]), images=[IMAGES[0].to(torch.uint8)], **GREEDY)
    with pytest.raises(ValueError, match="generate takes input_ids and images"):
        biased.generate(inputs_embeds=torch.zeros(1, 1, 64), **GREEDY)
    with pytest.raises(ValueError, match="cut through an image"):
        biased.config.tokenizer_model_max_length = 3
        try:
            biased(torch.tensor([ROWS[0]]), images=IMAGES[:1], labels=torch.tensor([ROWS[0]]))
        finally:
            biased.config.tokenizer_model_max_length = 2048


ONE = torch.tensor([ROWS[0]])


@pytest.mark.parametrize(
    ("prompt", "kind", "words"),
    [
        ({"input_ids": ONE[0]}, ValueError, rf"has the shape \({len(ROWS[0])},\); .* input_ids\[None\]"),
        ({"input_ids": ONE[None]}, ValueError, r"it must be \(prompts, tokens\)$"),
        ({"input_ids": ROWS[0]}, TypeError, r"input_ids is a list; .* torch.tensor\(\[ids\]\)"),
        ({"input_ids": BatchEncoding({"input_ids": ONE})}, TypeError, "is a BatchEncoding; .*: give its input_ids"),
        ({"input_ids": ONE.float()}, TypeError, "input_ids is torch.float32; it must be int64"),
        ({"input_ids": ONE[:, :0], "images": None}, ValueError, "the prompt is empty"),
        ({"attention_mask": torch.zeros_like(ONE)}, ValueError, "attention_mask hides all of them"),
        ({"attention_mask": ONE[:, 1:]}, ValueError, "attention_mask has the shape .* that of input_ids"),
        ({"attention_mask": [1]}, TypeError, "attention_mask is a list; it must be a tensor"),
        ({"images": Image.new("RGB", (9, 9))}, TypeError, r"images is a Image; .*: process_images\(\[image\], "),
        ({"images": [Image.new("RGB", (9, 9))]}, TypeError, r"images\[0\] is a Image; .* be prepared: process_images"),
        ({"images": PICTURE[0]}, ValueError, r"images has the shape \(3, 112, 112\); .* images\[None\]"),
        ({"images": [PICTURE[0, 0]]}, ValueError, r"images\[0\] has the shape \(112, 112\); it must be \(channels, "),
    ],
)
def test_a_prompt_or_an_image_of_another_form_is_named(biased, prompt, kind, words):
    given = {"input_ids": ONE, "images": PICTURE[:1], **prompt}
    with pytest.raises(kind, match=words):
        biased.generate(**given, **GREEDY)
    if given["images"] is not None:  # without, the language model's own rules hold
        with pytest.raises(kind, match=words):
            biased(**given)


def test_a_max_length_counts_the_prompt_with_its_images(biased):
    tokens = biased(ONE, images=PICTURE[:1]).logits.shape[1]
    answer = biased.generate(ONE, images=PICTURE[:1], do_sample=False, max_length=tokens + 1)
    assert answer.shape == (1, 1)
    for options in ({"max_length": tokens}, {"generation_config": GenerationConfig(max_length=tokens)}):
        with pytest.raises(ValueError, match=f"max_length is {tokens}, and a prompt has {tokens} tokens .*max_new_tok"):
            biased.generate(ONE, images=PICTURE[:1], do_sample=False, **options)


def test_size_bias_needs_an_attention_that_can_apply_it(folder):
    model = load_pretrained_model(str(folder), device="cpu", qlip=SETTINGS["biased"], attn_implementation="eager")[1]
    model.generate(torch.tensor([ROWS[0]]), images=IMAGES[1:2], **GREEDY)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="llm_size_bias.*need an attention bias, which 'flash_attention_2'"):
        model.generate(torch.tensor([ROWS[0]]), images=IMAGES[1:2], **GREEDY)


@torch.no_grad()
def test_images_encoded_once_are_asked_as_pixels_are(biased):
    ids, mask = pad(ROWS, "left")
    encoded = biased.encode_tokens(IMAGES)
    said = biased.generate(ids, images=encoded, attention_mask=mask, **GREEDY)
    assert torch.equal(said, biased.generate(ids, images=IMAGES, attention_mask=mask, **GREEDY))
    assert biased.encode_tokens(encoded) == encoded


def test_encoded_images_and_pixels_do_not_mix(biased):
    with pytest.raises(TypeError, match="some images are encoded and some are pixels"):
        biased.generate(torch.tensor([ROWS[1]]), images=[*biased.encode_tokens(IMAGES[:1]), IMAGES[1]], **GREEDY)


def test_a_prompts_logits_are_computed_where_the_answer_begins_only(folder):
    """All of them would be batch x tokens x vocabulary."""
    model = load_pretrained_model(str(folder), device="cpu", qlip=TREE)[1]
    widths = []
    model.lm_head.register_forward_pre_hook(lambda _, inputs: widths.append(inputs[0].shape[1]))
    ids, mask = pad(ROWS, "right")
    model.generate(ids, images=IMAGES, attention_mask=mask, **GREEDY)
    assert set(widths) == {1}
    with torch.no_grad():
        whole = model(input_ids=ids, images=IMAGES, attention_mask=mask).logits
        last = model(input_ids=ids, images=IMAGES, attention_mask=mask, logits_to_keep=2).logits
    torch.testing.assert_close(last, whole[:, -2:])
