"""ImageCutter: one cutter serves all settings, each call its own."""

from __future__ import annotations

import pickle
from io import BytesIO

import pytest
import torch

from llava.images import decode_image
from qlip import QLIPConfig, QLIPImageProcessor
from qlip.cutting import ImageCutter
from qlip.rgb import to_rgb
from tests.qlip.test_image_processing import gradient_picture

SETTINGS = {
    "own": QLIPConfig(),
    "small": QLIPConfig(image_size=112, max_tokens=30),
    "thumbnail": QLIPConfig(criterion="gradient", coarsest="any", alpha=0.3, thumbnail=True, max_cells=300),
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_a_call_equals_a_processor_of_its_settings(settings: QLIPConfig) -> None:
    image = gradient_picture(300, 200)
    processor, cutter = QLIPImageProcessor(14, 112, qlip=settings), pickle.loads(pickle.dumps(ImageCutter(14, 112)))
    pixels = torch.from_numpy(processor.preprocess(image)["pixel_values"][0])
    assert torch.equal(cutter.normalise(image, settings), pixels)
    assert cutter.fit(settings)(300, 200) == processor.fit(300, 200) == (pixels.shape[2], pixels.shape[1])
    ours, theirs = cutter.cut(pixels, settings), processor.cut(pixels)
    assert torch.equal(ours.leaves.boxes, theirs.leaves.boxes)
    assert torch.equal(ours.patches, theirs.patches)
    assert (ours.thumbnail is None) == (theirs.thumbnail is None) == (not settings.thumbnail)


def test_the_native_size_is_rounded_down_to_whole_cells() -> None:
    assert (ImageCutter(14, 384).native_size, ImageCutter(14, 384).native_grid) == (378, 27)


def test_a_decoded_image_is_not_converted_again() -> None:
    file = BytesIO()
    gradient_picture(20, 10).save(file, format="JPEG", dpi=(72, 72))
    image = decode_image(file.getvalue())
    assert to_rgb(image) is image
