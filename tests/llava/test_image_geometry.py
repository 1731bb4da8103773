"""Images are fitted, tiled and padded as LLaVA does, without ever making a square that takes gigabytes."""

from __future__ import annotations

from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

from llava import image_geometry, mm_utils


def gradient(width: int, height: int, mode: str = "RGB") -> Image.Image:
    values = np.arange(width * height * 3, dtype=np.uint32).reshape(height, width, 3) % 251
    return Image.fromarray(values.astype(np.uint8)).convert(mode)


@pytest.mark.parametrize("side", [112, 336])
@pytest.mark.parametrize(
    "size", [(64, 48), (48, 64), (500, 333), (333, 500), (336, 336), (700, 90), (90, 700), (3, 20)]
)
def test_a_padded_image_is_resized_as_its_square_would_be(size: tuple[int, int], side: int) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    for resample in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS):
        square = image_geometry.expand2square(image, (122, 116, 104)).resize((side, side), resample)
        assert image_geometry.resize_padded(image, (122, 116, 104), side, resample).tobytes() == square.tobytes()


@pytest.mark.parametrize("size", [(20, 1000), (31, 250), (8, 512)])
def test_a_tall_strip_is_resized_as_its_square_would_be_to_one_level(size: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    square = image_geometry.expand2square(image, (122, 116, 104)).resize((336, 336), Image.Resampling.BICUBIC)
    ours = image_geometry.resize_padded(image, (122, 116, 104), 336, Image.Resampling.BICUBIC)
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


@pytest.mark.parametrize(
    ("size", "best"),
    [((600, 600), (672, 672)), ((1000, 100), (1008, 336)), ((100, 1000), (336, 1008)), ((500, 1000), (336, 672))],
)
def test_the_best_resolution_keeps_most_and_wastes_least(size: tuple[int, int], best: tuple[int, int]) -> None:
    offered = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]
    assert image_geometry.select_best_resolution(size, offered) == best


@pytest.mark.parametrize(("size", "box"), [((20, 10), (0, 10, 40, 30)), ((10, 20), (10, 0, 30, 40))])
def test_fitting_centres_the_picture_on_black(size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    fitted = image_geometry.resize_and_pad_image(Image.new("RGB", size, "white"), (40, 40))
    assert fitted.size == (40, 40)
    assert fitted.getbbox() == box


def test_padding_to_a_square_centres_and_leaves_squares_alone() -> None:
    red = Image.new("RGB", (10, 4), "red")
    square = image_geometry.expand2square(red, (0, 0, 0))
    assert square.size == (10, 10)
    assert square.getbbox() == (0, 3, 10, 7)
    assert image_geometry.expand2square(square, (0, 0, 0)) is square


def test_tiles_come_in_raster_order() -> None:
    image = gradient(6, 4)
    tiles = image_geometry.divide_to_patches(image, 2)
    boxes = [(x, y, x + 2, y + 2) for y in (0, 2) for x in (0, 2, 4)]
    assert [tile.tobytes() for tile in tiles] == [image.crop(box).tobytes() for box in boxes]
