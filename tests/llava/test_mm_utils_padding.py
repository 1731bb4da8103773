"""Images are padded to a square as LLaVA pads them, without ever making a square that takes gigabytes."""

from __future__ import annotations

from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

from llava import mm_utils


@pytest.mark.parametrize("side", [112, 336])
@pytest.mark.parametrize(
    "size", [(64, 48), (48, 64), (500, 333), (333, 500), (336, 336), (700, 90), (90, 700), (3, 20)]
)
def test_a_padded_image_is_resized_as_its_square_would_be(size: tuple[int, int], side: int) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    for resample in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS):
        square = mm_utils.expand2square(image, (122, 116, 104)).resize((side, side), resample)
        assert mm_utils.resize_padded(image, (122, 116, 104), side, resample).tobytes() == square.tobytes()


@pytest.mark.parametrize("size", [(20, 1000), (31, 250), (8, 512)])
def test_a_tall_strip_is_resized_as_its_square_would_be_to_one_level(size: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    square = mm_utils.expand2square(image, (122, 116, 104)).resize((336, 336), Image.Resampling.BICUBIC)
    ours = mm_utils.resize_padded(image, (122, 116, 104), 336, Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(ours, int) - np.asarray(square, int)).max() <= 1


@pytest.mark.parametrize("kind", [CLIPImageProcessorPil, SiglipImageProcessorPil])
def test_a_long_strip_is_padded_without_its_square(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mm_utils, "expand2square", None)
    for size in ((16_384, 256), (256, 16_384)):
        pixels = mm_utils.process_images([Image.new("RGB", size)], kind(), Namespace(image_aspect_ratio="pad"))
        assert pixels.shape == (1, 3, 224, 224)


def test_a_processor_of_somebodys_own_gets_the_square() -> None:
    class Shape:
        image_mean = (0.5, 0.5, 0.5)

        def preprocess(self, image: Image.Image, return_tensors: str) -> dict[str, list[torch.Tensor]]:
            return {"pixel_values": [torch.tensor(image.size)]}

    pixels = mm_utils.process_images([Image.new("RGB", (9, 5))], Shape(), Namespace(image_aspect_ratio="pad"))
    assert pixels.tolist() == [[9, 9]]
