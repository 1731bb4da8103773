"""A LLaVA-1.6 checkpoint gives transformers' LlavaNext's logits and text; what is missing or wrong says so."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaNextImageProcessorPil

from llava.constants import IMAGE_TOKEN_INDEX
from llava.mm_utils import process_images
from llava.model import LlavaConfig
from llava.model.builder import load_pretrained_model
from llava.model.text_only import encode_nothing
from llava.model.vision.encoding import encode_prepared
from llava.model.vision.image_tokens import ImageTokens
from llava.model.vision.prepared_image import prepare_pixels
from tests.llava.checkpoints import write_tokenizer
from tests.llava.next_checkpoints import PINPOINTS, SETTINGS, make_next_checkpoint, next_model, oracle_inputs, picture

SIZES = {"wide": (300, 120), "tall": (90, 400), "square": (224, 224), "small": (60, 50), "photograph": (320, 240)}
ROW = [1, 20, IMAGE_TOKEN_INDEX, 30, 31]
GREEDY = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_next_checkpoint(tmp_path_factory.mktemp("next"))


@pytest.fixture(scope="module")
def loaded(folder):
    _, model, processor, context = load_pretrained_model(str(folder), device="cpu")
    assert context == 4096
    return model, processor


@pytest.fixture(scope="module")
def oracle():
    return next_model()


def prepare(loaded, *names: str) -> tuple[list[torch.Tensor], list[tuple[int, int]]]:
    model, processor = loaded
    pictures = [picture(*SIZES[name], seed) for seed, name in enumerate(names)]
    return list(process_images(pictures, processor, model.config)), [image.size for image in pictures]


@pytest.mark.parametrize("name", SIZES)
@torch.no_grad()
def test_logits_equal_llava_next(loaded, oracle, name):
    model, processor = loaded
    pixels, sizes = prepare(loaded, name)
    got = model(torch.tensor([ROW]), images=pixels, image_sizes=sizes).logits
    expected = oracle(**oracle_inputs(oracle, [ROW], pixels, sizes)).logits
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    ready = prepare_pixels(picture(*SIZES[name]), processor, model.config, model.get_vision_tower().native_tokens)
    assert ready.tokens == ready.positions == ready.context == got.shape[1] - 4
    assert (ready.image_size, ready.size) == (sizes[0], (112, 112))
    prepared = model(torch.tensor([ROW]), images=encode_prepared(model, [ready])).logits
    assert torch.equal(prepared, got)


@torch.no_grad()
def test_a_batch_with_several_images_in_a_prompt_answers_as_llava_next(loaded, oracle):
    """Images of other numbers of tiles, one after the other in the first prompt, and a prompt without an image."""
    model, _ = loaded
    pixels, sizes = prepare(loaded, "wide", "photograph", "small")
    rows = [[1, IMAGE_TOKEN_INDEX, 20, IMAGE_TOKEN_INDEX, 30], [1, 40, 41, IMAGE_TOKEN_INDEX, 42], [1, 50, 51]]
    ids, mask = (
        torch.nn.utils.rnn.pad_sequence(part, True, 0, "left")
        for part in zip(*((torch.tensor(row), torch.ones(len(row))) for row in rows), strict=True)
    )
    got = model.generate(ids, images=pixels, image_sizes=sizes, attention_mask=mask, **GREEDY)
    inputs = oracle_inputs(oracle, rows, pixels, sizes)
    expected = oracle.generate(**inputs, **GREEDY)[:, inputs["input_ids"].shape[1] :]
    assert torch.equal(got, expected)


@torch.no_grad()
def test_llavas_own_calls_take_image_sizes_in_their_order(loaded, oracle):
    """Positionally, as LLaVA's clients give them; labels count the image's tokens."""
    model, _ = loaded
    pixels, sizes = prepare(loaded, "tall")
    ids = torch.tensor([ROW])
    none, positions, mask, cache, embeds, labels = model.prepare_inputs_labels_for_multimodal(
        ids, None, torch.ones_like(ids), None, ids.clamp(min=0), torch.stack(pixels), torch.tensor(sizes)
    )
    assert none is None and cache is None and embeds.shape[:2] == labels.shape == mask.shape == positions.shape
    expected = oracle(**oracle_inputs(oracle, [ROW], pixels, sizes)).logits
    got = model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(model.generate(ids, pixels, sizes, max_new_tokens=2), model.generate(
        ids, images=pixels, image_sizes=sizes, max_new_tokens=2
    ))  # fmt: skip


@torch.no_grad()
def test_one_tile_is_its_features_and_a_newline(loaded):
    """In a list, as LLaVA has it; one tensor of pictures is a batch without tiles, and has no newlines."""
    model, _ = loaded
    base = prepare(loaded, "small")[0][0][0]
    (alone,) = model.encode_tokens(base[None])
    (listed,) = model.encode_tokens([base])
    assert len(alone.features) == 64
    torch.testing.assert_close(listed.features, torch.cat([alone.features, model.model.image_newline[None]]))
    (again,) = model.encode_tokens(base[None, None])
    assert torch.equal(again.features, listed.features)


@torch.no_grad()
def test_tiles_of_flat_follow_each_other(tmp_path):
    folder = make_next_checkpoint(tmp_path, mm_patch_merge_type="flat", image_grid_pinpoints=str(PINPOINTS))
    _, model, processor, _ = load_pretrained_model(str(folder), device="cpu")
    pixels = process_images([picture(*SIZES["wide"])], processor, model.config)
    (tokens,) = model.encode_tokens(pixels)
    assert torch.equal(tokens.features, model.encode_images(pixels[0]).flatten(0, 1))
    ready = prepare_pixels(picture(*SIZES["wide"]), processor, model.config, 64)
    assert (ready.tokens, ready.tiles, ready.image_size) == (4 * 64, None, None)


@torch.no_grad()
def test_pooled_tiles_keep_the_largest_of_each_four_cells(tmp_path):
    """As LLaVA-NeXT: over the joined raster, padding included, and without newlines; a single tile is as it is."""
    folder = make_next_checkpoint(tmp_path, mm_patch_merge_type="spatial_maxpool2x2")
    _, model, processor, _ = load_pretrained_model(str(folder), device="cpu")
    image = picture(*SIZES["wide"])
    pixels = process_images([image], processor, model.config)
    (tokens,) = model.encode_tokens(pixels, image_sizes=[image.size])
    base, *tiles = model.encode_images(pixels[0])
    cols = max(width for width, height in PINPOINTS if height == 112) // 112
    assert len(tiles) == cols
    expected = []
    for row in range(0, 8, 2):
        for col in range(0, 8 * cols, 2):
            four = [tiles[x // 8][y * 8 + x % 8] for y in (row, row + 1) for x in (col, col + 1)]
            expected.append(torch.stack(four).amax(0))
    torch.testing.assert_close(tokens.features, torch.cat([base, torch.stack(expected)]))
    ready = prepare_pixels(image, processor, model.config, 64)
    assert ready.tokens == len(tokens.features) == 64 + 16 * cols
    (alone,) = model.encode_tokens([pixels[0][:1]])
    torch.testing.assert_close(alone.features, base, atol=1e-4, rtol=1e-4)  # kernels may differ with the batch


def test_a_surplus_image_keeps_the_sizes_in_order(loaded):
    """LLaVA's training gives a prompt without <image> one that it does not show."""
    model, _ = loaded
    pixels, sizes = prepare(loaded, "small", "wide")
    ids = torch.tensor([[1, 20, 30], [1, IMAGE_TOKEN_INDEX, 30]])
    with torch.no_grad():
        got = model(ids, images=pixels, image_sizes=sizes).logits[1]
        expected = model(ids[1:], images=pixels[1:], image_sizes=sizes[1:]).logits[0]
    torch.testing.assert_close(got, expected)


def test_missing_or_wrong_sizes_are_refused_before_the_tower_runs(loaded, monkeypatch):
    model, _ = loaded
    pixels, sizes = prepare(loaded, "wide", "photograph")
    monkeypatch.setattr(type(model.get_vision_tower()), "encode_tokens", lambda *_: pytest.fail("the tower runs"))
    for given, message in (
        (None, "give image_sizes"),
        (sizes[:1], "2 images were given, but 1 image_sizes"),
        (sizes[::-1], r"has 1 \+ \d tiles of 112 pixels, but"),
    ):
        with pytest.raises(ValueError, match=message):
            model.encode_tokens(pixels, given)


def test_the_newline_is_part_of_the_checkpoint(folder, tmp_path, loaded):
    state = load_file(folder / "model.safetensors")
    assert torch.equal(loaded[0].model.image_newline, state["model.image_newline"])
    loaded[0].save_pretrained(tmp_path / "again")
    assert torch.equal(
        load_file(tmp_path / "again/model.safetensors")["model.image_newline"], state["model.image_newline"]
    )
    values = json.loads((tmp_path / "again/config.json").read_text())
    assert {name: values[name] for name in SETTINGS} == SETTINGS
    lacking = make_next_checkpoint(tmp_path / "lacking")
    del state["model.image_newline"]
    save_file(state, lacking / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights of the model, for example 'model\.image_newline'"):
        load_pretrained_model(str(lacking), device="cpu")


def test_the_tuned_tower_in_the_checkpoint_wins(folder, loaded):
    state = load_file(folder / "model.safetensors")
    name = "encoder.layers.0.mlp.fc1.weight"
    own = loaded[0].get_vision_tower().vision_tower.state_dict()[name]
    assert torch.equal(own, state[f"model.vision_tower.vision_tower.vision_model.{name}"])


def test_a_text_batch_has_the_newline_in_its_graph(loaded):
    model, _ = loaded
    nothing = encode_nothing(model)
    assert nothing.shape == (0, 64)
    nothing.sum().backward()
    assert model.model.image_newline.grad is not None
    model.zero_grad()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"mm_patch_merge_type": "spatial_unpad_maxpool2x2"},
            "mm_patch_merge_type is 'spatial_unpad_maxpool2x2'; allowed",
        ),
        (
            {"image_aspect_ratio": "highres"},
            "image_aspect_ratio is 'highres'; of the ways to cut tiles, allowed are 'anyres'",
        ),
        ({"image_aspect_ratio": "crop_split"}, "image_aspect_ratio is 'crop_split'"),
        ({"image_aspect_ratio": "anyres_max_0"}, "image_aspect_ratio is 'anyres_max_0'"),
        ({"image_grid_pinpoints": None}, "image_grid_pinpoints is None; allowed are"),
        ({"image_grid_pinpoints": [[336]]}, r"image_grid_pinpoints holds \[336\]; allowed are"),
        ({"mm_vision_select_feature": "cls_patch"}, "'spatial_unpad' only 'patch' is allowed"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        LlavaConfig(**{**SETTINGS, **changes})


@torch.no_grad()
def test_transformers_own_checkpoint_loads_too(loaded, oracle, tmp_path):
    """As llava-hf/llava-v1.6-vicuna-7b-hf is saved, its image processor's settings included."""
    oracle.save_pretrained(tmp_path)
    square = {"height": 112, "width": 112}
    resolutions = [[height, width] for width, height in PINPOINTS]
    LlavaNextImageProcessorPil(
        size={"shortest_edge": 112}, crop_size=square, image_grid_pinpoints=resolutions
    ).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    _, model, processor, _ = load_pretrained_model(str(tmp_path), device="cpu")
    pixels, sizes = prepare(loaded, "wide")
    assert torch.equal(process_images([picture(*SIZES["wide"])], processor, model.config)[0], pixels[0])
    got = model(torch.tensor([ROW]), images=pixels, image_sizes=sizes).logits
    torch.testing.assert_close(got, loaded[0](torch.tensor([ROW]), images=pixels, image_sizes=sizes).logits)


def test_encoded_images_need_no_sizes(loaded):
    model, processor = loaded
    pixels, sizes = prepare(loaded, "wide")
    with torch.no_grad():
        tokens = model.encode_tokens(pixels, sizes)
        assert isinstance(tokens[0], ImageTokens) and tokens[0].tiles is None
        got = model(torch.tensor([ROW]), images=tokens).logits
        assert torch.equal(got, model(torch.tensor([ROW]), images=pixels, image_sizes=sizes).logits)
