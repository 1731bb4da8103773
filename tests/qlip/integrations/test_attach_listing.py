"""What attached processors and `vllm_image_embeds` take for images: the same forms, with the same result."""

from __future__ import annotations

import base64
import re
from io import BytesIO

import numpy as np
import pytest
import torch

import qlip
from qlip.images.arrays import flatten_images
from tests.qlip.integrations.models import attached, picture

PICTURE = picture(60, 90, 1)
PROMPT = "USER: <image>\nwhat? ASSISTANT:"


def as_text() -> str:
    file = BytesIO()
    PICTURE.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("images") / "a.png"
    PICTURE.save(file)
    return str(file)


FORMS = {
    "Pillow": lambda path: PICTURE,
    "path": lambda path: path,
    "base64": lambda path: as_text(),
    "array": lambda path: np.asarray(PICTURE),
    "tensor": lambda path: torch.from_numpy(np.array(PICTURE)).permute(2, 0, 1),
}


@pytest.mark.parametrize("kind", ["llava", "llava_next"])
def test_an_image_processor_packs_every_form_alone_or_in_a_list(kind, path):
    own = attached(kind)[1].image_processor
    expected = own.pack([PICTURE])
    for make in FORMS.values():
        for given in (make(path), [make(path)]):
            packed = own.pack(given)
            assert packed.keys() == expected.keys()
            assert all(torch.equal(packed[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kind", ["llava", "llava_next"])
def test_embeddings_for_vllm_take_one_image_in_every_form(kind, path):
    model, _ = attached(kind, llm_positions="sequential", llm_size_bias=0.0)
    (expected,) = qlip.vllm_image_embeds(model, [PICTURE])
    for make in FORMS.values():
        (embeds,) = qlip.vllm_image_embeds(model, make(path), batch_size=1)
        assert torch.equal(embeds, expected)
    several = np.stack([np.asarray(PICTURE), np.asarray(picture(60, 90, 2))])
    first, second = qlip.vllm_image_embeds(model, several, batch_size=1)
    assert torch.equal(first, expected) and not torch.equal(second, expected)
    with pytest.raises(ValueError, match="there is no image; give at least one"):
        qlip.vllm_image_embeds(model, [])


@pytest.mark.parametrize("form", FORMS)
def test_a_question_is_asked_about_every_form(form, path):
    model, processor = attached("llava", budget="question")
    expected = qlip.process_for_question(model, processor, PICTURE, PROMPT)
    inputs = qlip.process_for_question(model, processor, FORMS[form](path), PROMPT)
    assert all(torch.equal(inputs[name], expected[name]) for name in expected)


def test_a_processor_takes_grey_arrays_in_lists_as_the_image_processor_does():
    _, processor = attached("llava")
    grey = np.asarray(PICTURE.convert("L"))
    expected = processor.image_processor.pack([grey])
    for images in ([grey], [[grey]], grey, [torch.from_numpy(grey.copy())]):
        inputs = processor(images=images, text=PROMPT, return_tensors="pt")
        assert all(torch.equal(inputs[name], expected[name]) for name in expected)


def test_the_images_of_several_prompts_are_listed_in_order():
    batch = torch.rand(2, 3, 4, 5)
    one, two, three = flatten_images([[], [batch], [PICTURE]])
    assert torch.equal(torch.stack([one, two]), batch) and three is PICTURE
    assert flatten_images([]) == [] == flatten_images([[], []])


@pytest.mark.parametrize(
    ("image", "shape"),
    [
        (torch.zeros(3, 0, 40), (0, 40, 3)),
        (np.zeros((0, 40, 3)), (0, 40, 3)),
        (np.zeros((30, 0), np.uint8), (30, 0)),
        (np.zeros((30, 0), bool), (30, 0)),
    ],
    ids=["tensor", "float64", "uint8", "bool"],
)
def test_an_empty_image_is_named_by_its_shape(image, shape):
    with pytest.raises(ValueError, match=f"^the image is an array of {re.escape(str(shape))}; .*; not empty$"):
        qlip.QLIPImageProcessor().preprocess([image])
