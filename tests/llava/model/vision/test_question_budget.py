"""The first pass of the question-aware budget: whose attention it is, and what is split then."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
import torch
from PIL import Image

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.builder import load_pretrained_model
from llava.model.vision.encoding import encode_prepared
from llava.model.vision.prepared_image import PreparedImage, prepare_leaves
from llava.model.vision.question_budget import attention_on_images, awaits_question, refine_images, refine_pixels
from llava.utils import demo_model_path
from playground.scenes import PRESETS, scene
from qlip import QLIPConfig
from qlip.images.rgb import to_rgb
from tests.llava.checkpoints import make_llava_checkpoint

LAYER = 2  # the middle one of four, counted from 0
TEXTS = ([5, 6, 7, 8], [9, 10, 11, 12, 13, 14, 15])
PROMPTS = [
    torch.tensor([1, 3, IMAGE_TOKEN_INDEX, *TEXTS[0]]),
    torch.tensor([1, IMAGE_TOKEN_INDEX, 4, IMAGE_TOKEN_INDEX, *TEXTS[1]]),
]
QUESTIONS = [3, 4]


def load(**options: Any) -> Any:
    return load_pretrained_model(demo_model_path(), device="cpu", qlip={"max_tokens": 128}, **options)[1]


@pytest.fixture(scope="module")
def model() -> Any:
    return load()


@pytest.fixture(scope="module")
def settings(model: Any) -> QLIPConfig:
    return replace(model.get_vision_tower().settings, budget="question", score_share=0.0)


@pytest.fixture(scope="module")
def pictures(model: Any, settings: QLIPConfig) -> list[PreparedImage]:
    cutter = model.get_vision_tower().image_processor.cutter
    images = [Image.fromarray(scene(PRESETS["detail"], 8, index).image) for index in range(3)]
    return [prepare_leaves(to_rgb(image), cutter, settings) for image in images]


def shares(pictures: list[Any]) -> list[list[Any]]:
    """The first prompt has one picture, the second two."""
    return [pictures[:1], pictures[1:]]


load_eager = cache(partial(load, attn_implementation="eager"))
"""Loads the model whose attention is the oracle's; it stays as it is."""


@torch.inference_mode()
def eager_attention(prompt: torch.Tensor, pictures: list[Any], start: int) -> torch.Tensor:
    """Attention of the text from `start` on in the spliced prompt, as transformers returns it."""
    eager = load_eager()
    batch = eager.splice_images(prompt[None], None, None, pictures, "left")
    inputs = {"attention_mask": batch.attention_mask, "position_ids": batch.placed.positions}
    bias = 2 * batch.placed.sizes.log()
    output = eager(inputs_embeds=batch.inputs_embeds, key_bias=bias, output_attentions=True, **inputs)
    return output.attentions[LAYER][0, :, start:].mean((0, 1))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_ragged_batch_has_the_attention_that_transformers_returns_for_each_prompt(attention, pictures):
    model = load(attn_implementation=attention)
    tokens = shares(encode_prepared(model, pictures))
    got = attention_on_images(model, PROMPTS, QUESTIONS, tokens)
    first = eager_attention(PROMPTS[0], tokens[0], 2 + 64)
    torch.testing.assert_close(got[0][0], first[2 : 2 + 64], atol=1e-5, rtol=1e-3)
    second = eager_attention(PROMPTS[1], tokens[1], 2 + 128)
    torch.testing.assert_close(got[1][0], second[1 : 1 + 64], atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(got[1][1], second[2 + 64 : 2 + 128], atol=1e-5, rtol=1e-3)


def test_text_before_the_newest_question_has_no_say(model, pictures):
    tokens = encode_prepared(model, pictures[:1])
    prompt = torch.tensor([1, IMAGE_TOKEN_INDEX, 20, 21, 22, 5, 6, 7])
    whole, newest = (attention_on_images(model, [prompt], [start], [tokens])[0][0] for start in (0, 5))
    expected = eager_attention(prompt, tokens, 1 + 64 + 3)[1 : 1 + 64]
    torch.testing.assert_close(newest, expected, atol=1e-5, rtol=1e-3)
    assert not torch.allclose(whole / whole.sum(), newest / newest.sum(), rtol=1e-2)


def test_an_image_that_no_token_of_the_question_follows_is_named(model, pictures):
    """None could attend to it: it would be split in raster order."""
    prompts = [PROMPTS[0], torch.tensor([1, 5, 6, IMAGE_TOKEN_INDEX])]
    with pytest.raises(ValueError, match="no token of the question follows the last image of prompt 1, .*'score'"):
        refine_images(model, prompts, [3, 1], [pictures[:1], pictures[1:2]])


def test_every_prompt_refines_its_own_images_whatever_is_in_its_batch(model, pictures):
    together = refine_images(model, PROMPTS, QUESTIONS, shares(pictures))
    for prompt, question, own, refined in zip(PROMPTS, QUESTIONS, shares(pictures), together, strict=True):
        (alone,) = refine_images(model, [prompt], [question], [own])
        for image, again, before in zip(refined, alone, own, strict=True):
            assert torch.equal(image.leaves.boxes, again.leaves.boxes)
            assert not awaits_question([image]) and before.question is not None
            sizes = image.leaves.boxes[image.leaves.sizes < 4]
            assert 1 <= len(torch.unique(sizes[:, 0] // 4 * 8 + sizes[:, 1] // 4)) <= 3
            assert before.first_tokens == 64 < image.tokens <= before.tokens <= 128


def test_an_image_is_counted_as_the_tower_makes_it(model, pictures):
    (refined,) = refine_images(model, PROMPTS[:1], QUESTIONS[:1], [pictures[:1]])
    tokens = encode_prepared(model, [pictures[0], *refined])
    assert [len(image.features) for image in tokens] == [64, refined[0].tokens]
    assert tokens[1].span.length == refined[0].positions == pictures[0].positions == 64


def test_images_that_await_no_question_are_returned_as_they_are(model, pictures, settings):
    cutter = model.get_vision_tower().image_processor.cutter
    picture = Image.fromarray(scene(PRESETS["detail"], 8, 1).image)
    plain = prepare_leaves(to_rgb(picture), cutter, replace(settings, budget="score"))
    before = model.model.layers[0].register_forward_hook(lambda *_: pytest.fail("the language model ran"))
    try:
        assert refine_images(model, PROMPTS[:1], QUESTIONS[:1], [[plain]]) == [[plain]]
    finally:
        before.remove()
    mixed = refine_images(model, PROMPTS, QUESTIONS, [[plain], [plain, pictures[1]]])
    assert mixed[0] == [plain] and mixed[1][0] is plain and mixed[1][1].question is None


@pytest.mark.parametrize(
    "change",
    [{"alpha": 50.0}, {"max_tokens": 65}, {"max_tokens": None, "question_share": 0.0}],
    ids=["nothing fine", "no budget", "no share"],
)
def test_where_no_question_could_change_the_tree_none_is_asked(model, settings, change):
    cutter = model.get_vision_tower().image_processor.cutter
    picture = to_rgb(Image.fromarray(scene(PRESETS["detail"], 8, 1).image))
    changed = replace(settings, **change)
    prepared = prepare_leaves(picture, cutter, changed)
    kept = 64 if changed.max_tokens is None else changed.max_tokens  # the scores have no share
    by_score = prepare_leaves(picture, cutter, replace(changed, budget="score", max_tokens=kept))
    assert prepared.question is None and prepared.settings == changed
    assert torch.equal(prepared.leaves.boxes, by_score.leaves.boxes)


@pytest.mark.parametrize("flag", ["load_8bit", "load_4bit"])
def test_a_quantised_model_attends_nearly_as_the_whole_one(flag, tmp_path):
    folder = str(make_llava_checkpoint(tmp_path, qlip={"budget": "question", "alpha": 0.5}))
    picture = Image.fromarray(scene(PRESETS["detail"], 8, 1).image)
    weights = []
    for options in ({}, {flag: True}):
        model = load_pretrained_model(folder, device="cpu", **options)[1]
        tower = model.get_vision_tower()
        prepared = prepare_leaves(to_rgb(picture), tower.image_processor.cutter, tower.settings)
        weights.append(
            attention_on_images(model, PROMPTS[:1], QUESTIONS[:1], [encode_prepared(model, [prepared])])[0][0]
        )
    close = torch.nn.functional.cosine_similarity(*(part.float() for part in weights), dim=0)
    assert close > {"load_8bit": 0.95, "load_4bit": 0.7}[flag]


@pytest.mark.parametrize("surplus", [1, 2])
def test_generate_asks_about_the_pictures_that_are_shown_and_leaves_the_others_out(model: Any, surplus: int) -> None:
    """LLaVA ignores pictures beyond the last <image>; a prompt without one takes one, which it does not show."""
    model = load_pretrained_model(demo_model_path(), device="cpu", qlip={"budget": "question"})[1]
    cutter = model.get_vision_tower().image_processor.cutter
    image = cutter.normalise(to_rgb(Image.fromarray(scene(PRESETS["detail"], 8, 0).image)), QLIPConfig())
    prompts = torch.stack([torch.tensor([1, IMAGE_TOKEN_INDEX, 5, 6, 7]), torch.tensor([1, 3, 5, 6, 7])])
    (alone,) = refine_pixels(model, prompts[:1], None, [image])
    black = torch.zeros(3, 112, 112)
    (found,) = refine_pixels(model, prompts[: 3 - surplus], None, [image, *[black] * surplus])
    assert len(found.features) == len(alone.features) < cutter.native_grid**2 * 2
    torch.testing.assert_close(found.features, alone.features)
    with pytest.raises(ValueError, match="the prompt holds 2 <image>, but 1 images were given"):
        refine_pixels(model, torch.cat([prompts, prompts]), None, [image])


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {
        budget: load_pretrained_model(demo_model_path(), device="cpu", qlip={"max_tokens": 96, "budget": budget})
        for budget in ("score", "question")
    }


@pytest.mark.parametrize("labelled", ["all text", "everything", "nothing"])
def test_a_loss_without_a_question_is_that_of_the_scores(models: dict[str, Any], labelled: str) -> None:
    """As of a caption, or of labels that are the prompt itself; an image at the end may be asked for its features."""
    image = Image.fromarray(scene(PRESETS["detail"], 8, 0).image)
    ids = torch.tensor([[1, IMAGE_TOKEN_INDEX] + ([] if labelled == "nothing" else TEXTS[0])])
    labels = {"all text": ids.masked_fill(ids < 2, -100), "everything": ids.clone(), "nothing": None}[labelled]
    found = {}
    for budget, (_, model, processor, _) in models.items():
        pixels = processor(image, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            found[budget] = model(ids, images=pixels, labels=labels).logits
    torch.testing.assert_close(found["question"], found["score"])
