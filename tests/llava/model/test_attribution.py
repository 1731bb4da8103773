"""How much each visual token counts for an answer: gradients, attention, and what leaving a token out means."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.attribution import METHODS, answer_log_likelihood, attribute_answer
from llava.model.builder import load_pretrained_model
from llava.model.splice import bias_keys
from llava.model.vision.image_tokens import ImageTokens
from llava.model.vision.question_budget import attention_on_images
from qlip.language_positions import ImageSpan
from tests.llava.checkpoints import IMAGE_TOKEN, PICTURE, make_llava_checkpoint, transformers_model

PROMPT, ANSWER = torch.tensor([1, 20, IMAGE_TOKEN_INDEX, 30, 31]), torch.tensor([40, 41, 42])
TWO = torch.tensor([1, IMAGE_TOKEN_INDEX, 25, IMAGE_TOKEN_INDEX, 30, 31])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_llava_checkpoint(tmp_path_factory.mktemp("llava")))


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request: pytest.FixtureRequest, folder: str) -> Any:
    options = {"device": "cpu", "qlip": {"llm_size_bias": 0.7, "alpha": 0.5}, "attn_implementation": request.param}
    return load_pretrained_model(folder, **options)[1]


@pytest.fixture(scope="module")
def images(model: Any) -> list[ImageTokens]:
    """Two images of different numbers of leaves, whose keys have weights."""
    wide = torch.randn(3, 112, 140, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.encode_tokens([PICTURE[0], wide])


def weighing(tokens: ImageTokens, number: int) -> ImageTokens:
    """The image, of whose tokens the text can attend to one alone."""
    sizes = torch.full((tokens.span.count,), 1e-20)
    sizes[number] = 1.0
    span = ImageSpan(tokens.span.count, tokens.span.positions, tokens.span.length, sizes)
    return ImageTokens(tokens.features, span)


@pytest.mark.parametrize("method", METHODS)
def test_weights_are_shares_of_all_images_of_the_prompt(model: Any, images: list[ImageTokens], method: Any) -> None:
    weights = attribute_answer(model, TWO, ANSWER, images, method)
    assert [own.shape for own in weights] == [(image.span.count,) for image in images]
    assert {own.dtype for own in weights} == {torch.float32}
    assert all((own >= 0).all() and own.sum() > 0.01 for own in weights)
    assert float(sum(own.sum() for own in weights)) == pytest.approx(1)


@pytest.mark.parametrize("method", METHODS)
def test_an_answer_that_depends_on_one_token_is_attributed_to_it(
    model: Any, images: list[ImageTokens], method: Any
) -> None:
    (weights,) = attribute_answer(model, PROMPT, ANSWER, [weighing(images[0], 17)], method)
    assert weights[17] > 0.999


def test_the_gradient_is_that_of_transformers(folder: str) -> None:
    theirs, ours = transformers_model(), load_pretrained_model(folder, device="cpu", qlip=False)[1]
    caught: list[Tensor] = []

    def keep(module: Any, args: Any, output: Tensor) -> Tensor:
        caught.append(output.detach().requires_grad_())
        return caught[0]

    theirs.model.multi_modal_projector.register_forward_hook(keep)
    ids = torch.cat([PROMPT[:2], torch.full((64,), IMAGE_TOKEN), PROMPT[3:], ANSWER])[None]
    logits = theirs(ids, pixel_values=PICTURE, attention_mask=torch.ones_like(ids)).logits[0, -4:-1]
    (gradient,) = torch.autograd.grad(logits.log_softmax(-1)[range(3), ANSWER].sum(), caught[0])
    gradient, features = gradient.view(64, -1), caught[0].detach().view(64, -1)

    with torch.no_grad():
        tokens = ours.encode_tokens(PICTURE)
    expected = {"gradient": gradient.norm(dim=1), "gradient-activation": (gradient * features).sum(1).abs()}
    for method, weights in expected.items():
        (got,) = attribute_answer(ours, PROMPT, ANSWER, tokens, method)
        torch.testing.assert_close(got, weights / weights.sum(), atol=1e-6, rtol=1e-3)


def test_the_attention_is_that_of_the_tokens_before_each_of_the_answers(model: Any, images: list[ImageTokens]) -> None:
    (got,) = attribute_answer(model, PROMPT, ANSWER, images[:1], "attention")
    (whole,) = attention_on_images(model, [torch.cat([PROMPT, ANSWER[:2]])], [4], [images[:1]])
    torch.testing.assert_close(got, whole[0] / whole[0].sum())


def test_without_a_gradient_the_attention_is_taken(
    model: Any, images: list[ImageTokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    for likelihood in (torch.zeros(()), None):

        def instead(model: Any, ids: Any, answered: int, tokens: Any, likelihood: Any = likelihood) -> Tensor:
            return tokens[0].features.sum() * torch.inf if likelihood is None else likelihood

        monkeypatch.setattr("llava.model.attribution.answer_log_likelihood", instead)
        got, expected = (attribute_answer(model, PROMPT, ANSWER, images[:1], name)[0] for name in METHODS[::2])
        assert torch.equal(got, expected)


def test_nothing_of_a_gradient_is_left_and_inference_mode_may_be_on(model: Any, images: list[ImageTokens]) -> None:
    expected = attribute_answer(model, PROMPT, ANSWER, images[:1])[0]
    with torch.inference_mode():
        tokens = images[0].with_features(images[0].features.clone())
        got = attribute_answer(model, PROMPT, ANSWER, [tokens])[0]
        assert torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
    assert torch.equal(got, expected) and not got.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not images[0].features.requires_grad


@torch.no_grad()
def test_a_token_that_is_left_out_is_one_that_nobody_attends_to(model: Any, images: list[ImageTokens]) -> None:
    keep = torch.ones(images[0].span.count, dtype=torch.bool)
    keep[[3, 30]] = False
    ids = torch.cat([PROMPT, ANSWER])
    got = answer_log_likelihood(model, ids, 3, [images[0].select(keep)])
    batch = model.splice_images(ids[None], None, None, images[:1], "left")
    mask = batch.attention_mask.clone()
    mask[0, 2 : 2 + len(keep)] = keep
    inputs = {
        "attention_mask": mask,
        "position_ids": batch.placed.positions,
        "key_bias": bias_keys(batch, model.config),
    }
    logits = model(inputs_embeds=batch.inputs_embeds, **inputs).logits[0, -4:-1]
    torch.testing.assert_close(got, logits.log_softmax(-1)[range(3), ANSWER].sum(), atol=1e-4, rtol=1e-4)


def test_what_is_left_of_an_image_keeps_its_places() -> None:
    keep = torch.tensor([True, False, True])
    left = ImageTokens(torch.eye(3), ImageSpan.sequential(3)).select(keep)
    assert left.features.tolist() == [[1, 0, 0], [0, 0, 1]]
    assert (left.span.count, left.span.positions.tolist(), left.span.length, left.span.sizes) == (2, [0, 2], 3, None)
    span = ImageSpan(3, torch.tensor([0.5, 1.5, 4.0]), 9, torch.tensor([1.0, 2.0, 4.0])).select(keep)
    assert (span.positions.tolist(), span.length, span.sizes.tolist()) == ([0.5, 4.0], 9, [1.0, 4.0])


@pytest.mark.parametrize("flag", ["load_8bit", "load_4bit"])
def test_a_quantised_models_answer_is_attributed_nearly_as_the_whole_ones(flag: str, folder: str) -> None:
    weights = []
    for options in ({}, {flag: True}):
        model = load_pretrained_model(folder, device="cpu", qlip=False, **options)[1]
        with torch.no_grad():
            tokens = model.encode_tokens(PICTURE.to(model.dtype))
        weights.append(attribute_answer(model, PROMPT, ANSWER, tokens)[0])
    assert float(weights[1].sum()) == pytest.approx(1)
    close = torch.nn.functional.cosine_similarity(*weights, dim=0)
    assert close > {"load_8bit": 0.95, "load_4bit": 0.8}[flag]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": []}, "the prompt has no image"),
        ({"answer": ANSWER[:0]}, "the answer is empty"),
        ({"method": "guess"}, "method is 'guess'; allowed are gradient, gradient-activation, attention"),
    ],
)
def test_what_cannot_be_attributed_is_refused(images: list[ImageTokens], change: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        attribute_answer(None, **{"prompt": PROMPT, "answer": ANSWER, "images": images[:1], **change})
