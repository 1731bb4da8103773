"""QLIP in a model that was trained on tiles: one quadtree over the image, or one in each tile."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image

from llava.constants import IMAGE_TOKEN_INDEX
from llava.eval.run.inputs.preparation import pack, unpack
from llava.mm_utils import process_images
from llava.model import LlavaConfig
from llava.model.builder import load_pretrained_model
from llava.model.multimodal_encoder.builder import takes_quadtree
from llava.model.vision.encoding import encode_prepared
from llava.model.vision.prepared_image import prepare_leaves
from llava.model.vision.preparer import Preparer
from llava.serve.engine.params import QLIPOptions
from llava.serve.engine.vision import VisionFrontend
from llava.utils import demo_model_path
from qlip import QLIPConfig
from tests.llava.next_checkpoints import SETTINGS, make_next_checkpoint, next_model, oracle_inputs, picture

SIZES = {"wide": (300, 120), "tall": (90, 400), "square": (224, 224), "small": (60, 50), "photograph": (320, 240)}
ROW = [1, 20, IMAGE_TOKEN_INDEX, 30, 31]
EVERY_CELL = QLIPConfig(tiling="tiles", alpha=0.0, max_tokens=None)
IN_TILES = QLIPConfig(tiling="tiles", alpha=1.0)
OVER_IMAGE = QLIPConfig(alpha=1.0, max_tokens=120)
IN_CELLS = replace(OVER_IMAGE, geometry="grid")
"""Pixels that were resized before give the same patches as the original."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_next_checkpoint(tmp_path_factory.mktemp("next"))


@pytest.fixture(scope="module")
def model(folder):
    return load_pretrained_model(str(folder), device="cpu", qlip=EVERY_CELL)[1]


@pytest.fixture(scope="module")
def plain(folder):
    """The same checkpoint with CLIP's tower: (model, its image processor)."""
    _, model, processor, _ = load_pretrained_model(str(folder), device="cpu")
    return model, processor


@pytest.fixture
def use(model):
    """Changes the tower's settings for one test."""

    def change(settings: QLIPConfig) -> None:
        model.get_vision_tower().settings = settings

    yield change
    change(EVERY_CELL)


def half_flat(name: str) -> Image.Image:
    """A picture with noise on its left and nothing on its right."""
    image = picture(*SIZES[name])
    image.paste((90, 120, 60), (image.width // 2, 0, image.width, image.height))
    return image


def cutter_of(model):
    return model.get_vision_tower().image_processor.cutter


def prepare(model, name: str):
    tower = model.get_vision_tower()
    return prepare_leaves(half_flat(name), cutter_of(model), tower.settings, model.config, tower.input_size)


@pytest.mark.parametrize("name", SIZES)
@torch.no_grad()
def test_cells_of_all_tiles_are_llava_nexts_image(model, plain, name):
    """The oracle is transformers' LlavaNext, on what CLIP's own processor makes of the picture."""
    oracle = next_model()
    image = half_flat(name)
    pixels = list(process_images([image], plain[1], plain[0].config))
    expected = oracle(**oracle_inputs(oracle, [ROW], pixels, [image.size])).logits
    ready = prepare(model, name)
    got = model(torch.tensor([ROW]), images=encode_prepared(model, [ready])).logits
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    assert ready.tokens == ready.positions == ready.uniform_tokens == got.shape[1] - 4
    by_pixels = process_images([image], model.get_vision_tower().image_processor, model.config)
    assert by_pixels[0].shape == pixels[0].shape
    again = model(torch.tensor([ROW]), images=by_pixels, image_sizes=[image.size]).logits
    torch.testing.assert_close(again, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [IN_CELLS, replace(IN_CELLS, thumbnail=True), IN_TILES, replace(IN_TILES, thumbnail=True)],
    ids=["image", "base", "tiles", "tiles, whose base it is"],
)
@pytest.mark.parametrize("name", ["photograph", "tall"])
@torch.no_grad()
def test_pixels_leaves_and_prepared_images_are_encoded_alike(model, use, settings, name):
    use(settings)
    image = half_flat(name)
    ready = prepare(model, name)
    (tokens,) = encode_prepared(model, [ready])
    assert tokens.span.count == ready.tokens == len(tokens.features) < ready.uniform_tokens
    assert tokens.span.length == ready.positions == ready.uniform_tokens  # those of LLaVA-1.6
    assert (tokens.span.positions.diff() >= 0).all() and tokens.span.positions[-1] < tokens.span.length
    base = 0 if settings is IN_CELLS else 64
    newlines = (tokens.features == model.model.image_newline).all(dim=1).sum()
    assert len(ready.leaves) == len(ready.patches) == ready.tokens - base - newlines > 0 < newlines
    pixels = process_images([image], model.get_vision_tower().image_processor, model.config)
    for given in (pixels, list(pixels), [ready.image]):
        (again,) = model.encode_tokens(given, [image.size])
        torch.testing.assert_close(again.features, tokens.features)
        torch.testing.assert_close(again.span.positions, tokens.span.positions)
    with pytest.raises(ValueError, match=r"give image_sizes, \(width, height\) of each image"):
        model.encode_tokens(pixels)
    with pytest.raises(ValueError, match="1 images were given, but 2 image_sizes"):
        model.encode_tokens(pixels, [image.size] * 2)


@pytest.mark.parametrize("settings", [OVER_IMAGE, IN_CELLS], ids=["native", "grid"])
@torch.no_grad()
def test_sizes_of_another_shape_than_the_pixels_are_refused(model, use, settings):
    use(settings)
    for size in SIZES.values():
        cut = prepare_leaves(picture(*size), cutter_of(model), settings, model.config).image
        for given in (process_images([picture(*size)], model.get_vision_tower().image_processor, model.config), [cut]):
            model.encode_tokens(given, [size])
            with pytest.raises(
                ValueError, match=rf"image_sizes holds \({size[0]}, {3 * size[1]}\), .* of another shape"
            ):
                model.encode_tokens(given, [(size[0], 3 * size[1])])
    with pytest.raises(ValueError, match=r"\(300, 120\) would fit: sizes are \(width, height\), and image.size of"):
        model.encode_tokens([torch.zeros(3, 112, 280)], [(120, 300)])


@pytest.mark.parametrize("settings", [OVER_IMAGE, IN_TILES], ids=["image", "tiles"])
@pytest.mark.parametrize("size", [(900, 2), (2, 900), (1, 1)])
@torch.no_grad()
def test_the_thinnest_strip_has_its_places(model, use, settings, size):
    """LLaVA keeps no row of its tiles."""
    use(settings)
    tower = model.get_vision_tower()
    ready = prepare_leaves(picture(*size), tower.image_processor.cutter, settings, model.config, tower.input_size)
    (tokens,) = encode_prepared(model, [ready])
    assert len(tokens.features) == ready.tokens > 0
    positions = tokens.span.positions
    assert (positions.diff() >= 0).all() and positions[0] >= 0 and positions[-1] < tokens.span.length


@pytest.mark.parametrize("tiling", ["image", "tiles"])
def test_a_picture_that_lies_on_its_side_is_measured_upright(model, use, tiling):
    use(settings := QLIPConfig(tiling=tiling))
    tower = model.get_vision_tower()
    lying, upright = picture(120, 300), picture(120, 300).transpose(Image.Transpose.ROTATE_270)
    (exif := Image.Exif())[0x0112] = 6  # to be turned clockwise
    lying.info["exif"] = exif.tobytes()
    ready = [
        prepare_leaves(image, tower.image_processor.cutter, settings, model.config, tower.input_size)
        for image in (lying, upright)
    ]
    assert ready[0].tiles == ready[1].tiles and ready[0].image_size == (300, 120)
    assert torch.equal(ready[0].patches, ready[1].patches)


@torch.no_grad()
def test_images_of_all_kinds_share_a_batch_and_answer_as_alone(model, use):
    use(OVER_IMAGE)
    vision = VisionFrontend(model, model.get_vision_tower().image_processor)
    kinds = (None, OVER_IMAGE, IN_TILES, EVERY_CELL)
    ready = [vision.prepare(half_flat("photograph"), vision.settings(kind)) for kind in kinds]
    together = vision.encode(ready)
    for image, tokens in zip(ready, together, strict=True):
        (alone,) = vision.encode([image])
        torch.testing.assert_close(alone.features, tokens.features, atol=1e-5, rtol=1e-4)
        assert tokens.span.count == image.tokens
    torch.testing.assert_close(together[0].features, together[3].features, atol=1e-5, rtol=1e-4)  # CLIP's view


@pytest.mark.parametrize("settings", [OVER_IMAGE, IN_TILES], ids=["image", "tiles"])
@torch.no_grad()
def test_leaves_are_ordered_and_joined_once(model, use, settings, monkeypatch):
    use(settings)
    ready = prepare(model, "wide")
    for name in ("order_cuts", "merge_cuts"):
        monkeypatch.delattr(f"llava.model.vision.quadtree_tiles.{name}")
        monkeypatch.delattr(f"llava.model.vision.prepared_image.{name}")
    (tokens,) = encode_prepared(model, [ready])
    assert len(tokens.features) == ready.tokens
    assert ready.leaves is ready.leaves and len(ready.leaves) == len(ready.order.leaves)


@pytest.mark.parametrize("settings", [OVER_IMAGE, IN_TILES], ids=["image", "tiles"])
def test_other_processes_prepare_the_same_image(model, use, settings, tmp_path):
    use(settings)
    half_flat("wide").save(file := tmp_path / "wide.png")
    here, ready = unpack(pack(Preparer.of(model.get_vision_tower())(file))), prepare(model, "wide")
    assert (here.tokens, here.positions, here.tiles, here.image_size) == (
        ready.tokens, ready.positions, ready.tiles, SIZES["wide"],
    )  # fmt: skip
    parts = [(here.image, ready.image)] if settings is OVER_IMAGE else zip(here.image, ready.image, strict=True)
    for got, expected in parts:
        assert torch.equal(got.patches, expected.patches) and torch.equal(got.leaves.boxes, expected.leaves.boxes)


@pytest.mark.parametrize("settings", [OVER_IMAGE, IN_TILES], ids=["image", "tiles"])
def test_gradients_reach_the_newline_and_the_projector(model, use, settings):
    use(settings)
    ready = prepare(model, "wide")
    ids = torch.tensor([ROW])
    loss = model(ids, labels=ids.clamp(min=0), images=[ready.image], image_sizes=[SIZES["wide"]]).loss
    loss.backward()
    trained = [model.model.image_newline, model.model.mm_projector[0].weight]
    assert all(weight.grad.abs().sum() > 0 for weight in trained)
    model.zero_grad()


def test_a_model_without_tiles_takes_no_quadtree_in_each_tile():
    """It would answer with one quadtree over the image, as if nothing had been asked."""
    message = r"tiling is 'tiles', .*; this one's image_aspect_ratio is 'pad'; give tiling='image' \(--tiling image\)"
    with pytest.raises(ValueError, match=message):
        load_pretrained_model(demo_model_path(), device="cpu", qlip={"tiling": "tiles"})
    _, model, processor, _ = load_pretrained_model(demo_model_path(), device="cpu", qlip=True)
    vision = VisionFrontend(model, processor)
    with pytest.raises(ValueError, match=message):
        vision.prepare(picture(50, 50), IN_TILES)


def test_what_does_not_go_with_tiles_is_named(folder, tmp_path, model):
    with pytest.raises(ValueError, match="budget is 'question'; allowed in models that were trained on tiles is 'sc"):
        load_pretrained_model(str(folder), device="cpu", qlip={"budget": "question"})
    vision = VisionFrontend(model, model.get_vision_tower().image_processor)
    with pytest.raises(ValueError, match="budget is 'question'"):
        vision.prepare(picture(50, 50), vision.settings(QLIPOptions(budget="question")))
    for merge in ("flat", "spatial"):
        other = make_next_checkpoint(tmp_path / merge, mm_patch_merge_type=merge)
        with pytest.raises(ValueError, match=rf"mm_patch_merge_type 'spatial_unpad'; here .* 'anyres' and '{merge}'"):
            load_pretrained_model(str(other), device="cpu", qlip=True)
        assert not takes_quadtree(LlavaConfig(**{**SETTINGS, "mm_patch_merge_type": merge}))
    assert takes_quadtree(LlavaConfig(**SETTINGS))
    with pytest.raises(ValueError, match="tiling is 'tile'; allowed are 'image', 'tiles'"):
        QLIPConfig(tiling="tile")
    with pytest.raises(ValueError, match=r"has 1 \+ 4 tiles of 112 pixels, but 2 were given"):
        model.encode_tokens([torch.zeros(2, 3, 112, 112)], [SIZES["photograph"]])
