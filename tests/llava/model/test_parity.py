"""Our model against transformers' own Llava with the same random weights: same logits, same greedy answers."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.builder import load_pretrained_model
from tests.llava.checkpoints import IMAGE_TOKEN, make_llava_checkpoint, transformers_model

NATIVE_TREE = {"alpha": 0.0, "max_tokens": None, "size_bias": 0.7, "llm_size_bias": 0.7, "llm_weight": "native"}


@pytest.fixture(scope="module")
def theirs():
    return transformers_model()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_llava_checkpoint(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module", params=[False, NATIVE_TREE], ids=["clip", "qlip at the native grid"])
def ours(request, folder):
    """Raster positions and both size biases must change nothing at the native uniform grid."""
    return load_pretrained_model(str(folder), device="cpu", qlip=request.param)[1]


def pictures(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 112, 112, generator=torch.Generator().manual_seed(count))


def expanded(ids: list[int]) -> list[int]:
    """The prompt as transformers wants it: an image token per feature."""
    return [token for i in ids for token in ([IMAGE_TOKEN] * 64 if i == IMAGE_TOKEN_INDEX else [i])]


PROMPTS = {
    "one image": [1, 20, 21, IMAGE_TOKEN_INDEX, 30, 31, 32],
    "two images": [1, IMAGE_TOKEN_INDEX, 40, 41, IMAGE_TOKEN_INDEX, 42],
    "image at the ends": [IMAGE_TOKEN_INDEX, 50, 51, IMAGE_TOKEN_INDEX],
    "text only": [1, 60, 61, 62],
}


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS.keys())
@torch.no_grad()
def test_logits_and_greedy_answer_equal_transformers(ours, theirs, prompt):
    images = pictures(prompt.count(IMAGE_TOKEN_INDEX)) if IMAGE_TOKEN_INDEX in prompt else None
    long = torch.tensor([expanded(prompt)])
    inputs = {"input_ids": long, "attention_mask": torch.ones_like(long)}
    if images is not None:
        inputs["pixel_values"] = images
    expected = theirs(**inputs).logits
    got = ours(torch.tensor([prompt]), images=images).logits
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    assert expected.std() > 0.05

    options = {"do_sample": False, "max_new_tokens": 8}
    answer = theirs.generate(**inputs, **options)
    assert torch.equal(ours.generate(torch.tensor([prompt]), images=images, **options), answer[:, long.shape[1] :])


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_a_padded_batch_has_the_logits_of_transformers(ours, theirs, side):
    rows = [PROMPTS["one image"], PROMPTS["two images"], PROMPTS["text only"]]
    images = pictures(3)
    padded, mask = pad(rows, side)
    long, long_mask = pad([expanded(row) for row in rows], side)
    expected = theirs(long, pixel_values=images, attention_mask=long_mask, position_ids=positions(long_mask)).logits
    ours.config.tokenizer_padding_side = side
    got = ours(padded, attention_mask=mask, images=images).logits
    torch.testing.assert_close(got[long_mask.bool()], expected[long_mask.bool()], atol=1e-4, rtol=0)


@pytest.mark.parametrize("beams", [1, 2])
@torch.no_grad()
def test_guidance_answers_as_transformers(ours, theirs, beams):
    """Away from each prompt's last token where no negative prompt is given; ours is padded on the other side."""
    rows = [PROMPTS["one image"], PROMPTS["two images"]]
    options = {"do_sample": False, "max_new_tokens": 4, "num_beams": beams, "guidance_scale": 3.0}
    long, long_mask = pad([expanded(row) for row in rows], "left")
    answer = theirs.generate(input_ids=long, attention_mask=long_mask, pixel_values=pictures(3), **options)
    padded, mask = pad(rows, "right")
    got = ours.generate(padded, attention_mask=mask, images=pictures(3), **options)
    assert torch.equal(got, answer[:, long.shape[1] :])
    unguided = ours.generate(padded, attention_mask=mask, images=pictures(3), **options | {"guidance_scale": None})
    assert not torch.equal(got, unguided)


@pytest.mark.parametrize(
    ("own", "passed"),
    [
        ({"guidance_scale": 3.0}, {"do_sample": False, "max_new_tokens": 4}),
        ({"num_beams": 2}, {"guidance_scale": 3.0, "do_sample": False, "max_new_tokens": 4}),
    ],
)
def test_guidance_follows_a_passed_configuration_and_the_model_s_own_where_that_is_silent(
    ours, theirs, monkeypatch, own, passed
):
    row, configuration = PROMPTS["one image"], GenerationConfig(**passed)
    for model in (ours, theirs):
        for name, value in own.items():
            monkeypatch.setattr(model.generation_config, name, value)
    long = torch.tensor([expanded(row)])
    answer = theirs.generate(long, pixel_values=pictures(1), generation_config=configuration)
    got = ours.generate(torch.tensor([row]), images=pictures(1), generation_config=configuration)
    assert torch.equal(got, answer[:, long.shape[1] :])


def test_guidance_of_a_prompt_without_text_says_what_it_needs(ours):
    with pytest.raises(ValueError, match="guidance_scale needs text in each prompt, or negative_prompt_ids"):
        ours.generate(torch.tensor([[IMAGE_TOKEN_INDEX]]), images=pictures(1), guidance_scale=2.0)


@torch.no_grad()
def test_loss_counts_text_only_and_equals_transformers(ours, theirs):
    prompt = PROMPTS["two images"]
    images = pictures(2)
    labels = torch.tensor([[-100, IMAGE_TOKEN_INDEX, 40, 41, IMAGE_TOKEN_INDEX, 42]])
    long = torch.tensor([expanded(prompt)])
    long_labels = torch.where(long == IMAGE_TOKEN, -100, long)
    long_labels[0, 0] = -100
    expected = theirs(long, pixel_values=images, attention_mask=torch.ones_like(long), labels=long_labels).loss
    got = ours(input_ids=torch.tensor([prompt]), labels=labels, images=images, use_cache=True, image_sizes=[(9, 9)])
    torch.testing.assert_close(got["loss"], expected, atol=1e-5, rtol=1e-5)


def test_gradients_reach_the_projector_and_the_language_model_but_not_the_tower(ours):
    output = ours(torch.tensor([PROMPTS["one image"]]), images=pictures(1), labels=torch.tensor([PROMPTS["one image"]]))
    output.loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in ours.model.mm_projector.parameters())
    assert ours.model.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in ours.get_vision_tower().parameters())
    ours.zero_grad()


def pad(rows: list[list[int]], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids and their mask, padded with 0 on a side."""
    ids = [torch.tensor(row) for row in rows]
    real = [torch.ones_like(row) for row in ids]
    return tuple(torch.nn.utils.rnn.pad_sequence(x, True, 0, side) for x in (ids, real))


def positions(mask: torch.Tensor) -> torch.Tensor:
    return (mask.cumsum(1) - 1).clamp(min=0)
