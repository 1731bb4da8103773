"""qlip.attach on LLaVA-NeXT: leaves take the places of its tiles' tokens, and newlines close their rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoProcessor,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
)
from transformers.models.llava_next.modeling_llava_next import unpad_image

import qlip
from qlip.integrations.next_tiles import NextTiles, lay_out
from tests.qlip.integrations.models import (
    GREEDY,
    IMAGE_TOKEN,
    NATIVE,
    PINPOINTS,
    PROMPTS,
    VISION,
    ask,
    attached,
    make_language_model,
    make_processor,
    make_tokenizer,
    picture,
)

EVERY_CELL = {"tiling": "tiles", "alpha": 0.0, "max_tokens": None}
IN_TILES = {"tiling": "tiles", "alpha": 0.5}
SIZES = [(70, 130), (150, 60), (56, 56), (90, 90)]
"""(height, width): the rasters of all four are padded."""
PICTURES = [picture(*size, seed) for seed, size in enumerate(SIZES)]
ALL_INPUTS = ("pixel_values", "leaf_boxes", "leaf_grids", "image_sizes")


@torch.no_grad()
def test_cells_of_all_tiles_are_llava_nexts_image():
    """In a padded batch with two images in a prompt and none, whatever the weights: logits, answers, image_sizes."""
    model, plain = make_language_model("llava_next"), make_processor("llava_next")
    inputs = ask(plain, PROMPTS, PICTURES)
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    expected, answers = model(**inputs, position_ids=positions).logits, model.generate(**inputs, **GREEDY)
    model, processor = qlip.attach(model, plain, **EVERY_CELL, llm_size_bias=0.7, llm_weight="native")
    ours = ask(processor, PROMPTS, PICTURES)
    for name in ("input_ids", "attention_mask", "image_sizes"):
        assert torch.equal(ours[name], inputs[name])
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(model(**ours).logits[real], expected[real], atol=1e-4, rtol=0)
    assert torch.equal(model.generate(**ours, **GREEDY), answers)
    assert expected.std() > 0.05


@torch.no_grad()
def test_tiles_may_end_in_less_than_a_cell():
    """As SigLIP's of 384 pixels do, which has no [CLS] either."""
    side = 4 * 14 + 6
    pinpoints = [[side, 2 * side], [2 * side, 2 * side]]
    model = make_language_model(
        "llava_next",
        vision_config={**VISION, "model_type": "siglip_vision_model", "image_size": side},
        image_grid_pinpoints=pinpoints,
        vision_feature_select_strategy="full",
    )
    square = {"height": side, "width": side}
    images = LlavaNextImageProcessorPil(size=square, crop_size=square, image_grid_pinpoints=pinpoints)
    plain = LlavaNextProcessor(images, make_tokenizer(), patch_size=14, vision_feature_select_strategy="full")
    inputs = ask(plain, PROMPTS[1:2], PICTURES[:2])
    expected = model(**inputs).logits
    model, processor = qlip.attach(model, plain, **EVERY_CELL)
    torch.testing.assert_close(model(**ask(processor, PROMPTS[1:2], PICTURES[:2])).logits, expected, atol=1e-4, rtol=0)


def test_images_come_as_one_array_or_tensor_or_as_a_list_of_them():
    images = attached("llava_next", alpha=0.3)[1].image_processor
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), np.uint8)
    expected = images.pack([Image.fromarray(each) for each in pixels])
    for given in (pixels, list(pixels), torch.from_numpy(pixels).permute(0, 3, 1, 2)):
        packed = images.pack(given)
        assert packed.keys() == expected.keys()
        assert all(torch.equal(packed[name], expected[name]) for name in expected)


@pytest.mark.parametrize("settings", [{"alpha": 0.3}, IN_TILES], ids=["image", "tiles"])
def test_saved_and_trained(tmp_path, settings):
    model, processor = attached("llava_next", **settings)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    inputs = ask(processor, PROMPTS[:2], PICTURES[:3])
    loaded = LlavaNextForConditionalGeneration.from_pretrained(tmp_path)
    loaded, again = qlip.attach(loaded, AutoProcessor.from_pretrained(tmp_path, backend="pil"))
    read = ask(again, PROMPTS[:2], PICTURES[:3])
    assert read.keys() == inputs.keys() and all(torch.equal(read[name], inputs[name]) for name in inputs)
    output = model(**inputs, labels=inputs["input_ids"])
    assert torch.equal(loaded(**read).logits, output.logits)
    output.loss.backward()
    trained = (model.model.image_newline, model.model.vision_tower.embeddings.patch_embedding.weight)
    assert all(weight.grad.abs().sum() > 0 for weight in trained)


@pytest.mark.parametrize("settings", [{"alpha": 0.3}, {"alpha": 0.3, "thumbnail": True}, IN_TILES], ids=str)
@torch.no_grad()
def test_text_comes_where_llava_next_has_it_however_few_the_leaves(settings):
    plain = make_processor("llava_next")
    model, processor = attached("llava_next", **settings)
    for image in PICTURES:
        inputs, theirs = (ask(each, ["ab<image>c"], [image]) for each in (processor, plain))
        placed = model.place_images(**{name: inputs[name] for name in inputs if name != "pixel_values"})
        assert placed.end.tolist() == [theirs["input_ids"].shape[1]]
        at = placed.positions[0, (inputs["input_ids"] == IMAGE_TOKEN)[0]]
        assert (at.diff() >= 0).all() and at[-1] < placed.end - 1
        features = model.get_image_features(**{name: inputs[name] for name in ALL_INPUTS}).pooler_output[0]
        newlines = at[(features == model.model.image_newline).all(dim=1)] - 2 - 16
        pitch = lay_out(model.attachment.tiles, (image.height, image.width)).window[3] + 1
        assert ((newlines + 1) % pitch == 0).all() and newlines.unique().numel() == len(newlines) > 0
        base = at[:16].tolist() == list(range(2, 18))
        assert base == ("thumbnail" in settings or "tiling" in settings)


@torch.no_grad()
def test_a_batch_of_tiles_answers_as_its_rows_alone():
    model, processor = attached("llava_next", **IN_TILES)
    inputs = ask(processor, PROMPTS[:2], PICTURES[:3])
    together = model.generate(**inputs, **GREEDY)[:, inputs["input_ids"].shape[1] :]
    for row, (prompt, images) in enumerate(zip(PROMPTS, (PICTURES[:1], PICTURES[1:3]), strict=False)):
        alone = ask(processor, [prompt], images)
        answer = model.generate(**alone, **GREEDY)[0, alone["input_ids"].shape[1] :]
        assert torch.equal(answer, together[row])


@torch.no_grad()
def test_sizes_are_those_of_the_original_and_go_with_the_leaves():
    model, processor = attached("llava_next", geometry="grid", alpha=0.3)
    inputs = dict(ask(processor, PROMPTS[:1], PICTURES[:1]))
    expected = model(**inputs).logits
    pixels = processor.image_processor(PICTURES[0], return_tensors="pt")["pixel_values"]
    assert pixels.shape[2:] != SIZES[0]
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    whole = model(**text, pixel_values=pixels, image_sizes=inputs["image_sizes"]).logits
    torch.testing.assert_close(whole, expected)
    lost = {name: value for name, value in inputs.items() if name != "image_sizes"}
    for call in (model, model.generate):
        with pytest.raises(ValueError, match="image_sizes, .height, width. .* are missing.*all that the attached proc"):
            call(**lost)
    for wrong in (inputs["image_sizes"][0], inputs["image_sizes"].float(), torch.tensor([[0, 130]])):
        with pytest.raises(ValueError, match=r"image_sizes are .*; they must be int64 \(1, 2\)"):
            model(**{**inputs, "image_sizes": wrong})


@torch.no_grad()
def test_images_of_another_tiling_are_refused():
    model, processor = attached("llava_next", **IN_TILES)
    _, other = attached("llava_next", geometry="grid", alpha=0.3)
    inputs = dict(ask(processor, PROMPTS[:1], PICTURES[:1]))
    with pytest.raises(ValueError, match=r"70 x 130 .* has tiles of 4 x 8 cells, its leaves \(leaf_grids\) 5 x 9"):
        model(**ask(other, PROMPTS[:1], PICTURES[:1]))
    with pytest.raises(ValueError, match="with tiling 'tiles' the model's processor makes the tiles"):
        model(input_ids=inputs["input_ids"], pixel_values=torch.zeros(1, 3, 56, 56))
    across = torch.tensor([[[0, 0, 2], [0, 2, 4], [0, 6, 2], [2, 0, 2], [2, 6, 2]]])
    with pytest.raises(ValueError, match=r"of row, col, size \[0, 2, 4\] is in two tiles of 4 x 4 cells"):
        model(**{**inputs, "leaf_boxes": across})


def test_what_tiles_need_is_named_when_they_are_attached():
    with pytest.raises(ValueError, match="tiling is 'tiles', which the model's own processor makes .*; given is none"):
        qlip.attach(make_language_model("llava_next"), **IN_TILES)
    with pytest.raises(ValueError, match="tiling is 'tiles', for LlavaNext.* alone; LlavaForCond.* takes 'image'"):
        attached("llava", **IN_TILES)
    with pytest.raises(ValueError, match="budget is 'question'; allowed with tiling 'tiles' is 'score'"):
        attached("llava_next", **IN_TILES, budget="question")


def test_the_thinnest_strip_has_a_row():
    """LLaVA-NeXT cuts all of its raster away as padding."""
    tiles = NextTiles(tuple(map(tuple, PINPOINTS)), NATIVE, 4)
    assert unpad_image(torch.zeros(1, 4, 8), (1, 4000)).shape == (1, 0, 8)
    assert (lay_out(tiles, (1, 4000)).window, lay_out(tiles, (4000, 1)).window) == ((1, 0, 1, 8), (0, 3, 4, 1))
