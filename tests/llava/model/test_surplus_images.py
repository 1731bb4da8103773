"""More images than <image>, as LLaVA's scripts and its training batches give them: what is shown is what was meant.

The oracle is transformers' own Llava, which gets the images that are shown and no others.
"""

from __future__ import annotations

import pytest
import torch

from llava.constants import IMAGE_TOKEN_INDEX as IMAGE
from llava.model.builder import load_pretrained_model
from tests.llava.checkpoints import IMAGE_TOKEN, make_llava_checkpoint, transformers_model

TEXT, ONE, TWO = [1, 60, 61, 62], [1, 20, IMAGE, 30], [1, IMAGE, 40, IMAGE, 41]
PICTURES = torch.randn(5, 3, 112, 112, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = make_llava_checkpoint(tmp_path_factory.mktemp("llava"))
    return load_pretrained_model(str(folder), device="cpu")[1]


@pytest.fixture(scope="module")
def theirs():
    return transformers_model()


def pad(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    ids = [torch.tensor(row) for row in rows]
    real = [torch.ones_like(row) for row in ids]
    return tuple(torch.nn.utils.rnn.pad_sequence(x, True, 0, "right") for x in (ids, real))


def expected_logits(theirs, row: list[int], images: torch.Tensor) -> torch.Tensor:
    long = torch.tensor([[token for i in row for token in ([IMAGE_TOKEN] * 64 if i == IMAGE else [i])]])
    return theirs(long, pixel_values=images if len(images) else None, attention_mask=torch.ones_like(long)).logits[0]


@pytest.mark.parametrize(
    ("rows", "given", "shown"),
    [
        ([TEXT], 1, [[]]),
        ([ONE], 3, [[0]]),
        ([TEXT, ONE], 2, [[], [1]]),
        ([ONE, TEXT, TWO], 4, [[0], [], [2, 3]]),
        ([TEXT, ONE], 1, [[], [0]]),
        ([TEXT, TEXT, ONE], 5, [[], [], [2]]),
    ],
)
@torch.no_grad()
def test_logits_are_those_of_the_images_that_are_shown(model, theirs, rows, given, shown):
    ids, mask = pad(rows)
    got = model(ids, attention_mask=mask, images=PICTURES[:given]).logits
    for row, logits, which in zip(rows, got, shown, strict=True):
        expected = expected_logits(theirs, row, PICTURES[which])
        torch.testing.assert_close(logits[: len(expected)], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["tensor", "list", "encoded"])
@torch.no_grad()
def test_generation_ignores_a_surplus_however_images_are_given(model, kind):
    images = {"tensor": PICTURES[:3], "list": list(PICTURES[:3])}
    given = model.encode_tokens(PICTURES[:3]) if kind == "encoded" else images[kind]
    options = {"do_sample": False, "max_new_tokens": 5}
    wanted = model.generate(torch.tensor([ONE]), images=PICTURES[:1], **options)
    assert torch.equal(model.generate(torch.tensor([ONE]), images=given, **options), wanted)


def test_too_few_are_still_an_error(model):
    with pytest.raises(ValueError, match="holds 2 <image>, but 1 images were given"):
        model.generate(torch.tensor([TWO]), images=PICTURES[:1], max_new_tokens=1)
    ids, mask = pad([TEXT, ONE, TEXT])
    with pytest.raises(ValueError, match="holds 1 <image>, but 2 images were given; allowed are 1, or 3"):
        model(ids, attention_mask=mask, images=PICTURES[:2])


def test_a_training_batch_of_text_alone_reaches_the_projector_with_a_gradient_of_zero(model):
    """Else a process whose batch has no picture would leave the others waiting for the projector's gradient."""
    model.train()
    ids, mask = pad([TEXT, TEXT])
    model(ids, attention_mask=mask, labels=ids, images=torch.zeros(2, 3, 112, 112)).loss.backward()
    gradients = [parameter.grad for parameter in model.model.mm_projector.parameters()]
    model.zero_grad()
    model.eval()
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


@torch.no_grad()
def test_what_is_not_shown_is_not_encoded_when_answering(model, monkeypatch):
    seen = []
    encode = type(model.get_vision_tower()).encode
    monkeypatch.setattr(
        type(model.get_vision_tower()),
        "encode",
        lambda tower, images: (seen.append(len(images)), encode(tower, images))[1],
    )
    model(*pad([TEXT, ONE]), images=PICTURES)
    assert seen == [1]
