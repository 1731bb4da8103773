"""A request's settings are laid over the server's, within its limits, and do not change the tower."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from llava.images import load_image
from llava.model.builder import load_pretrained_model
from llava.serve.engine.params import QLIPOptions
from llava.serve.engine.vision import CLIP_VIEW, VisionFrontend
from llava.utils import demo_model_path, demo_picture_path
from qlip import QLIPConfig, partition


def load(qlip: Any) -> tuple[Any, Any]:
    _, model, image_processor, _ = load_pretrained_model(demo_model_path(), device="cpu", qlip=qlip)
    return model, image_processor


@pytest.fixture(scope="module")
def vision() -> VisionFrontend:
    return VisionFrontend(*load({"max_tokens": 100}), max_tokens=300, max_size=448)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return load_image(demo_picture_path())


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        (QLIPOptions(), {}),
        (QLIPOptions(enabled=True), {}),
        (QLIPOptions(alpha=0.2), {"alpha": 0.2}),
        (QLIPOptions(budget="question"), {"budget": "question"}),
        (QLIPOptions(True, 0.2, 80, 224), {"alpha": 0.2, "max_tokens": 80, "image_size": 224}),
    ],
)
def test_options_are_laid_over_the_towers_settings(
    vision: VisionFrontend, options: QLIPOptions, changes: dict[str, Any]
) -> None:
    assert vision.settings(options) == replace(vision.tower.settings, **changes)


def test_options_of_a_request_are_no_dictionary(vision: VisionFrontend) -> None:
    with pytest.raises(TypeError, match=r"qlip is \{'alpha': 0.5\}; it must be QLIPOptions, such as"):
        vision.settings({"alpha": 0.5})  # type: ignore[arg-type]


def test_clips_view_is_a_requests_choice_or_the_servers(vision: VisionFrontend) -> None:
    clip_first = VisionFrontend(vision.model, vision.image_processor, quadtree=False)
    assert vision.settings(QLIPOptions(enabled=False)) is None
    assert clip_first.settings() is None
    assert clip_first.settings(QLIPOptions(enabled=True)) == vision.tower.settings
    assert clip_first.settings(QLIPOptions(alpha=0.5)) == replace(vision.tower.settings, alpha=0.5)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (QLIPOptions(max_tokens=301), "max_tokens is 301; this server allows at most 300"),
        (QLIPOptions(image_size=449), "image_size is 449; this server allows at most 448"),
        (QLIPOptions(max_tokens=0), "max_tokens is 0; it must be at least 1"),
        (QLIPOptions(budget="words"), "budget is 'words'; allowed are 'score', 'question'"),
        (QLIPOptions(alpha=-1.0), "alpha is -1.0; it must be >= 0"),
        (QLIPOptions(False, alpha=0.1, max_tokens=9), "qlip is not enabled, so it takes no alpha, max_tokens"),
    ],
)
def test_impossible_options_are_refused(vision: VisionFrontend, options: QLIPOptions, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        vision.settings(options)


@pytest.mark.parametrize("options", [{"max_tokens": "96"}, {"alpha": "high"}, {"enabled": "no"}])
def test_options_of_another_type_are_named(vision: VisionFrontend, options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(TypeError, match=f"{name} is '{value}'; it must be"):
        vision.settings(QLIPOptions(**options))


@pytest.mark.parametrize("options", [QLIPOptions(enabled=True), QLIPOptions(alpha=0.3)])
def test_a_clip_tower_refuses_quadtree_options(options: QLIPOptions) -> None:
    clip = VisionFrontend(*load(False))
    assert clip.settings() is clip.settings(QLIPOptions(enabled=False)) is None
    with pytest.raises(ValueError, match="has CLIP's uniform grid only"):
        clip.settings(options)


def test_both_views_are_of_the_upright_image_on_white(vision: VisionFrontend, picture: Image.Image) -> None:
    """As a phone or a drawing program saves it; LLaVA's own `process_images` sees neither."""
    upright = picture.convert("RGB").crop((0, 0, 200, 120))
    turned, exif = upright.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    turned.save(file, "PNG", exif=exif)
    clear = Image.new("RGBA", (60, 40), (255, 0, 0, 0))
    for shown, expected in ((Image.open(file), upright), (clear, Image.new("RGB", (60, 40), "white"))):
        clip, other = (vision.prepare(image, None).image for image in (shown, expected))
        assert torch.equal(clip, other)
        cut, same = (vision.prepare(image, vision.settings(QLIPOptions())).image for image in (shown, expected))
        assert torch.equal(cut.patches, same.patches)


def test_a_prepared_image_counts_the_towers_tokens(vision: VisionFrontend, picture: Image.Image) -> None:
    settings = [vision.settings(options) for options in (QLIPOptions(), QLIPOptions(max_tokens=70), QLIPOptions(False))]
    settings.append(replace(vision.tower.settings, thumbnail=True, llm_positions="sequential"))
    views = [vision.prepare(picture, setting) for setting in settings]
    tokens = vision.encode(views)
    assert [view.tokens for view in views] == [len(token.features) for token in tokens]
    assert [view.context for view in views] == [max(len(token.features), token.span.length) for token in tokens]
    assert [view.uniform_tokens for view in views] == [1024, 1024, 64, 1024]


def test_the_leaves_are_the_quadtrees_of_the_pixels(vision: VisionFrontend, picture: Image.Image) -> None:
    view = vision.prepare(picture, QLIPConfig(criterion="gradient", coarsest="any", alpha=0.9, max_tokens=200))
    pixels = vision.image_processor.preprocess(picture, return_tensors="pt")["pixel_values"][0]
    oracle = partition(pixels, 14, alpha=0.9, criterion="gradient", coarsest="any", max_tokens=200)
    assert torch.equal(view.leaves.boxes, oracle.boxes)


def test_the_tower_keeps_its_settings_whatever_is_asked(vision: VisionFrontend, picture: Image.Image) -> None:
    tower = vision.tower
    before = tower.settings
    (expected,) = vision.encode([vision.prepare(picture, before)])
    vision.encode([vision.prepare(picture, None), vision.prepare(picture, replace(before, alpha=2.0))])
    assert tower.settings == tower.vision_tower.qlip == tower.image_processor.qlip == before
    (after,) = vision.encode([vision.prepare(picture, before)])
    torch.testing.assert_close(after.features, expected.features, atol=0, rtol=0)


IN_CELLS = {"geometry": "grid", "noise_floor": False}
"""Pixels give the leaves and patches of the original."""
EVERY_SETTING = {"thumbnail": True, "size_bias": 0.5, "llm_size_bias": -0.5, "interpolation": "bilinear"}


@pytest.mark.parametrize("options", [{"alpha": 0.3, "llm_positions": "sequential"}, EVERY_SETTING], ids=["few", "many"])
@torch.inference_mode()
def test_settings_of_a_call_are_those_of_a_tower_loaded_with_them(
    vision: VisionFrontend, picture: Image.Image, options: dict[str, Any]
) -> None:
    settings = replace(vision.tower.settings, **IN_CELLS, **options)
    model, image_processor = load(settings)
    pixels = image_processor.preprocess(picture, return_tensors="pt")["pixel_values"][0]
    (expected,) = model.encode_tokens([pixels])
    prepared = vision.prepare(picture, settings)
    (of_leaves,) = vision.encode([prepared])
    (of_pixels,) = vision.encode([replace(prepared, image=pixels)])
    assert (prepared.tokens, prepared.positions) == (expected.span.count, expected.span.length)
    for got in (of_leaves, of_pixels):
        torch.testing.assert_close(got.features, expected.features, atol=0, rtol=0)
        torch.testing.assert_close(got.span.positions, expected.span.positions, atol=0, rtol=0)
        torch.testing.assert_close(got.span.sizes, expected.span.sizes, atol=0, rtol=0)


def test_a_quadtree_of_clips_own_settings_goes_beside_clips_view(vision: VisionFrontend, picture: Image.Image) -> None:
    views = [vision.prepare(picture, None), vision.prepare(picture, CLIP_VIEW)]
    assert views[0].settings == views[1].settings
    together = vision.encode(views)
    assert [len(tokens.features) for tokens in together] == [64, 1024]
    for view, tokens in zip(views, together, strict=True):
        (alone,) = vision.encode([view])
        torch.testing.assert_close(tokens.features, alone.features, atol=1e-4, rtol=1e-4)
