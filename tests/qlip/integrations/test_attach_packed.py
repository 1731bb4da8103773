"""Packed images that do not match are an error in an attached model, never other logits."""

from __future__ import annotations

import pytest
import torch

import qlip
from tests.qlip.integrations.models import (
    GREEDY,
    PICTURES,
    TREE,
    ask,
    attached,
    make_contrastive_model,
    make_contrastive_processor,
    make_vision_model,
    picture,
)

NAMES = ("pixel_values", "leaf_boxes", "leaf_grids")
PROMPT = ["USER: <image>\nwhat? ASSISTANT:"]


def change(name, function):
    return lambda packed: {**packed, name: function(packed[name].clone())}


def put(name, index, value):
    def function(tensor):
        tensor[index] = torch.as_tensor(value, dtype=tensor.dtype)
        return tensor

    return change(name, function)


def drop(*names):
    return lambda packed: {name: value for name, value in packed.items() if name not in names}


def swapped(packed):
    """Two leaves of one size change places, and their patches with them."""
    boxes, pixels = packed["leaf_boxes"].clone(), packed["pixel_values"].clone()
    boxes[0, [0, 1]], pixels[[0, 1]] = boxes[0, [1, 0]], pixels[[1, 0]]
    return {**packed, "leaf_boxes": boxes, "pixel_values": pixels}


def one_leaf_less(packed):
    return {**packed, "leaf_boxes": packed["leaf_boxes"][:, :-1], "pixel_values": packed["pixel_values"][:-1]}


def overlapping(packed):
    """A leaf of 2 x 2 cells, moved by one: it lies half on its neighbour, and the sum of cells stays the same."""
    boxes = packed["leaf_boxes"].clone()
    free = (boxes[0, :, 2] == 2) & (boxes[0, :, 1] < 8)
    boxes[0, free.nonzero()[0, 0], 1] += 1
    return {**packed, "leaf_boxes": boxes}


TILING = (
    r"image 0 has a grid \(leaf_grids\) of 8 x 12 cells, but its \d+ leaves \(leaf_boxes\), of \d+ cells in all, do not"
)
WRONG = {
    "pixels alone": (
        drop("leaf_boxes", "leaf_grids"),
        r"pixel_values are \(\d+, 3, 14, 14\), patches of 14 x 14 pixels, .* are missing: prepare images",
    ),
    "no boxes": (drop("leaf_boxes"), "go together; leaf_boxes are missing: give both as the attached processor"),
    "no grids": (drop("leaf_grids"), "go together; leaf_grids are missing: give both as the attached processor"),
    "a leaf less": (one_leaf_less, TILING),
    "a leaf of another size": (put("leaf_boxes", (0, -1, 2), 0), TILING),
    "a leaf twice": (change("leaf_boxes", lambda boxes: boxes[:, [0, *range(boxes.shape[1] - 1)]]), TILING),
    "another order": (swapped, TILING),
    "overlapping": (
        overlapping,
        r"its \d+ leaves \(leaf_boxes\), of 96 cells in all, do not cover each of its 96 cells",
    ),
    "outside": (
        put("leaf_boxes", (0, -1), (7, 12, 1)),
        r"a leaf \(leaf_boxes\) of row, col, size \[7, 12, 1\] outside",
    ),
    "above": (put("leaf_boxes", (0, 0), (-1, 0, 1)), r"a leaf \(leaf_boxes\) of row, col, size \[-1, 0, 1\] outside"),
    "a size below 0": (put("leaf_boxes", (0, 0, 2), -2), r"of row, col, size \[0, 0, -2\] outside"),
    "the grid on its side": (
        put("leaf_grids", 0, (12, 8)),
        r"grid \(leaf_grids\) of 12 x 8 cells, but a leaf .* outside",
    ),
    "a larger grid": (
        put("leaf_grids", 0, (9, 12)),
        "of 9 x 12 cells, but its .* do not cover each of its 108 cells once",
    ),
    "a smaller grid": (put("leaf_grids", 0, (8, 11)), "of 8 x 11 cells, but a leaf .* outside"),
    "no grid": (
        lambda packed: {
            **packed,
            "leaf_grids": torch.zeros(1, 2, dtype=torch.long),
            "leaf_boxes": torch.zeros(1, 3, 3, dtype=torch.long),
        },
        "of 0 x 0 cells, but its 0 leaves",
    ),
    "boxes in floats": (change("leaf_boxes", torch.Tensor.float), "leaf_boxes are torch.float32; they must be int64"),
    "boxes of another shape": (
        change("leaf_boxes", lambda boxes: boxes[0]),
        r"leaf_boxes are \(\d+, 3\), leaf_grids \(1, 2\)",
    ),
    "grids of more images": (
        change("leaf_grids", lambda grids: grids.repeat(2, 1)),
        r"leaf_grids \(2, 2\); they must be",
    ),
    "no image": (
        lambda packed: {**packed, "leaf_grids": packed["leaf_grids"][:0], "leaf_boxes": packed["leaf_boxes"][:0]},
        "leaf_boxes hold no image",
    ),
    "a patch less": (
        change("pixel_values", lambda pixels: pixels[:-1]),
        r"pixel_values are .*, and leaf_boxes hold \d+ leaves",
    ),
    "bytes": (change("pixel_values", torch.Tensor.byte), "pixel_values are torch.uint8; .* one floating-point tensor"),
    "a list": (
        lambda packed: {**packed, "pixel_values": list(packed["pixel_values"])},
        "pixel_values are list; with leaf_b",
    ),
    "smaller patches": (
        change("pixel_values", lambda pixels: pixels[..., :7, :7]),
        r"patches of \(3, 7, 7\), .* \(3, 14, 14\)",
    ),
    "grey patches": (
        change("pixel_values", lambda pixels: pixels[:, :1]),
        r"patches of \(1, 14, 14\), the model's are",
    ),
}


@pytest.fixture(scope="module")
def llava():
    return attached("llava", **TREE)


def refused(message, call, *arguments, **options):
    with pytest.raises(ValueError, match=message) as error:
        call(*arguments, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", WRONG)
@torch.no_grad()
def test_a_language_model(llava, kind):
    model, processor = llava
    inputs = dict(ask(processor, PROMPT, PICTURES[1:2]))
    text = {name: value for name, value in inputs.items() if name not in NAMES}
    packed = {name: inputs[name] for name in NAMES}
    model(**text, **packed)
    function, message = WRONG[kind]
    wrong = function(packed)
    refused(message, model, **text, **wrong)
    refused(message, model.generate, **text, **wrong, **GREEDY)
    refused(message, model.get_image_features, **wrong)


@pytest.fixture(scope="module", params=["vision", "contrastive"])
def call_and_packed(request):
    """What encodes packed images, and an image that it takes."""
    settings = {name: value for name, value in TREE.items() if name != "llm_size_bias"}
    if request.param == "vision":
        model, processor = qlip.attach(make_vision_model("clip"), **settings)
        return model, dict(processor.pack(PICTURES[1:2]))
    model, processor = qlip.attach(make_contrastive_model("clip"), make_contrastive_processor(), **settings)
    return model.get_image_features, dict(processor.image_processor.pack(PICTURES[1:2]))


@pytest.mark.parametrize("kind", WRONG)
@torch.no_grad()
def test_a_vision_model(call_and_packed, kind):
    call, packed = call_and_packed
    call(**packed)
    function, message = WRONG[kind]
    refused(message, call, **function(packed))


@torch.no_grad()
def test_pictures_and_prompts_of_different_number(llava):
    model, processor = llava
    one, two = ask(processor, PROMPT, PICTURES[1:2]), ask(processor, PROMPT * 2, PICTURES[1:3])
    text = {name: two[name] for name in ("input_ids", "attention_mask")}
    packed = {name: one[name] for name in NAMES}
    for call in (model, lambda **inputs: model.generate(**inputs, **GREEDY)):
        refused(r"the prompt holds \d+ image tokens, and its images \(0\) have 0", call, **text, **packed)
        text_of_one = {name: one[name] for name in ("input_ids", "attention_mask")}
        more = {name: two[name] for name in NAMES}
        refused("2 images were given, 1 more than the prompts have tokens for", call, **text_of_one, **more)


@torch.no_grad()
def test_leaves_without_pixels(llava):
    model, processor = llava
    inputs = dict(ask(processor, PROMPT, PICTURES[1:2]))
    del inputs["pixel_values"]
    refused("leaf_boxes of 1 images are given without pixel_values", model, **inputs)
    refused("leaf_boxes of 1 images are given without pixel_values", model.generate, **inputs, **GREEDY)


@torch.no_grad()
def test_encoded_images_keep_their_places_or_are_refused(llava):
    model, processor = llava
    inputs = dict(ask(processor, PROMPT, PICTURES[1:2]))
    expected = model(**inputs).logits
    encoded = {"image": model.get_image_features(**{name: inputs[name] for name in NAMES})}
    del inputs["pixel_values"]
    torch.testing.assert_close(model(**inputs, mm_encoder_outputs=encoded).logits, expected)
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    refused("encoded images are given without leaf_boxes and leaf_grids", model, **text, mm_encoder_outputs=encoded)
    placed = model.place_images(**inputs)
    given = {"position_ids": placed.positions, "key_bias": qlip.key_bias(placed.sizes)}
    torch.testing.assert_close(model(**text, **given, mm_encoder_outputs=encoded).logits, expected)


@torch.no_grad()
def test_the_inner_model_wants_the_places_of_its_images(llava):
    model, processor = llava
    inputs = dict(ask(processor, PROMPT, PICTURES[1:2]))
    refused("LlavaModel is given images without position_ids: call the model around it", model.model, **inputs)


@torch.no_grad()
def test_thumbnails_of_another_model():
    model, processor = attached("llava", **TREE, thumbnail=True)
    packed = dict(processor.image_processor.pack(PICTURES[1:2]))
    model.get_image_features(**packed)
    packed["pixel_values"] = packed["pixel_values"][16 - 9 :]
    refused("the thumbnails have 3 x 3 patches, the model 4 x 4", model.get_image_features, **packed)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (lambda: [picture(56, 56)], "pixel_values are Image for each image, without leaf_boxes"),
        (lambda: torch.zeros(2, 56, 56).numpy(), "pixel_values are ndarray for each image"),
        (lambda: torch.zeros(3, 56, 56), r"pixel_values are \(56, 56\) for each image"),
        (lambda: torch.zeros(1, 1, 56, 56), r"pixel_values are \(1, 56, 56\) for each image.* \(3, height, width\)"),
        (lambda: [], "pixel_values hold no image"),
    ],
    ids=["a picture", "an array", "no batch", "grey", "none"],
)
def test_what_is_no_whole_image(pixels, message):
    model, _ = qlip.attach(make_vision_model("clip"), alpha=0.5)
    refused(message, model, pixels())


@torch.no_grad()
def test_whole_images_of_one_patch_are_taken_as_a_list():
    model, _ = qlip.attach(make_vision_model("clip"), alpha=0.5)
    assert model([torch.randn(3, 14, 14)]).last_hidden_state.shape[1] == 2
