"""scripts.convert_checkpoint on LLaVA-1.6: the same model in both formats, and back bit by bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor, CLIPImageProcessorPil, LlavaNextForConditionalGeneration

from llava.constants import IMAGE_TOKEN_INDEX
from llava.mm_utils import process_images
from llava.model.builder import load_pretrained_model
from scripts.checkpoints.formats import convert
from tests.llava.next_checkpoints import PINPOINTS, make_next_checkpoint, picture


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """With the image processor that a LLaVA checkpoint may have."""
    folder = make_next_checkpoint(tmp_path_factory.mktemp("next"), conv_mode="vicuna_v1")
    square = {"height": 112, "width": 112}
    CLIPImageProcessorPil(size={"shortest_edge": 112}, crop_size=square).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def there(source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("there") / "next"
    assert convert(str(source), folder) == "transformers"
    return folder


@torch.no_grad()
def test_transformers_answers_from_its_own_processor_as_llava_does(source, there):
    """Pixels, numbers of tokens and logits, for images of other sizes in one batch."""
    theirs, report = LlavaNextForConditionalGeneration.from_pretrained(there, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert theirs.config.image_grid_pinpoints == [[height, width] for width, height in PINPOINTS]
    processor = AutoProcessor.from_pretrained(there, backend="pil")
    images = [picture(300, 120), picture(60, 50, 1)]
    prompt = "USER: <image>\nwhat is in the picture? ASSISTANT:"
    inputs = processor(images=images, text=[prompt] * 2, padding=True, return_tensors="pt")
    got = theirs(**inputs).logits
    _, ours, image_processor, _ = load_pretrained_model(str(source), device="cpu")
    pixels = process_images(images, image_processor, ours.config)
    for row, (own, padded) in enumerate(zip(pixels, inputs["pixel_values"], strict=True)):
        shown = padded[: len(own)]
        torch.testing.assert_close(shown, own, atol=2e-2, rtol=0)  # a level of 255
        real = inputs["attention_mask"][row].bool()
        assert real[-1], "batches must be padded on the left, to be continued on the right"
        ids = inputs["input_ids"][row][real].tolist()
        first, count = ids.index(theirs.config.image_token_id), ids.count(theirs.config.image_token_id)
        short = torch.tensor([[*ids[:first], IMAGE_TOKEN_INDEX, *ids[first + count :]]])
        expected = ours(short, images=[shown], image_sizes=[images[row].size]).logits[0]
        assert len(expected) == len(ids)
        torch.testing.assert_close(got[row, real, : expected.shape[1]], expected, atol=1e-3, rtol=1e-3)


def test_there_and_back_is_bit_exact(source, there, tmp_path):
    assert convert(str(there), tmp_path / "back") == "llava"
    assert json.loads((tmp_path / "back/config.json").read_text()) == json.loads((source / "config.json").read_text())
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_tiles_that_transformers_does_not_have_are_refused(tmp_path):
    folder = make_next_checkpoint(tmp_path / "spatial", mm_patch_merge_type="spatial")
    with pytest.raises(
        ValueError, match="tiles are 'anyres', 'spatial'; transformers' format has 'anyres', 'spatial_u"
    ):
        convert(str(folder), tmp_path / "out")
