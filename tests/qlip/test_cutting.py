"""ImageCutter: one cutter serves all settings, each call its own."""

from __future__ import annotations

import pickle
from io import BytesIO

import pytest
import torch

from llava.images import decode_image
from qlip import QLIPConfig, QLIPImageProcessor
from qlip.cutting import ImageCutter
from qlip.images.rgb import to_rgb
from qlip.scores.noise import estimate_noise
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
    assert cutter.make_fit(settings)(300, 200) == processor.fitted_size(300, 200) == (pixels.shape[2], pixels.shape[1])
    ours, theirs = cutter.cut(pixels, settings), processor.cut(pixels)
    assert torch.equal(ours.leaves.boxes, theirs.leaves.boxes)
    assert torch.equal(ours.patches, theirs.patches)
    assert (ours.thumbnail is None) == (theirs.thumbnail is None) == (not settings.thumbnail)


def test_settings_of_one_image_share_its_pixels_and_its_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    image, cutter = gradient_picture(300, 200), ImageCutter(14, 112)
    several = [*SETTINGS.values(), QLIPConfig(alpha=0.1), QLIPConfig(noise_floor=False), QLIPConfig()]
    expected = [cutter.prepare(image, settings) for settings in several]
    estimated: list[object] = []
    resized: list[object] = []
    resize = ImageCutter._resize
    monkeypatch.setattr("qlip.cutting.estimate_noise", lambda own: estimated.append(own) or estimate_noise(own))
    monkeypatch.setattr(ImageCutter, "_resize", lambda *own: resized.append(own[2]) or resize(*own))
    prepare = cutter.make_preparer(image)
    for settings, cut in zip(several, expected, strict=True):
        found = prepare(settings)
        assert torch.equal(found.leaves.boxes, cut.leaves.boxes)
        assert torch.equal(found.patches, cut.patches)
    assert len(estimated) == 1
    assert sorted(resized) == sorted(set(resized))
    assert len(resized) < len(several)


def test_the_native_size_is_rounded_down_to_whole_cells() -> None:
    assert (ImageCutter(14, 384).native_size, ImageCutter(14, 384).native_grid) == (378, 27)


def test_a_decoded_image_is_not_converted_again() -> None:
    file = BytesIO()
    gradient_picture(20, 10).save(file, format="JPEG", dpi=(72, 72))
    image = decode_image(file.getvalue())
    assert to_rgb(image) is image


@pytest.mark.parametrize(
    ("patch_size", "size", "most", "grid"),
    [(14, (286, 11340), 16384, (20, 810)), (14, (146, 22400), 16384, (10, 1600)), (16, (1499, 19), 100, (94, 1))],
)
def test_thin_images_whose_whole_cells_fit_are_not_made_smaller(patch_size, size, most, grid):
    """The areas in parts of cells are above the limit, the nearest whole cells are not."""
    settings = QLIPConfig.paper(max_cells=most)
    assert ImageCutter(patch_size, 336).choose_grid(*size, settings) == grid
