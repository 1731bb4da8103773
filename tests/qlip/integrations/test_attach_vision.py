"""qlip.attach on vision models alone and on contrastive ones: zero-shot classification at native resolution."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from transformers import AutoImageProcessor, AutoModel, AutoProcessor, CLIPImageProcessorPil, pipeline

import qlip
from tests.qlip.integrations.models import (
    NATIVE,
    PICTURES,
    TREE,
    make_contrastive_model,
    make_contrastive_processor,
    make_vision_model,
    picture,
)

KINDS = ["clip", "siglip", "dinov2"]
UNIFORM = {"alpha": 0.0, "max_tokens": None, "size_bias": 0.5}
NATIVES = [picture(NATIVE, NATIVE, seed) for seed in range(3)]
TEXTS = ["a photo of a cat", "a photo of a dog", "nothing"]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_at_the_native_grid_everything_is_the_untouched_models(kind):
    model, processor = qlip.attach(make_vision_model(kind), **UNIFORM)
    pixels = processor(NATIVES, return_tensors="pt")["pixel_values"]
    expected = make_vision_model(kind)(pixels, output_hidden_states=True)
    for inputs in (processor.pack(NATIVES), {"pixel_values": pixels}):
        output = model(**inputs, output_hidden_states=True)
        torch.testing.assert_close(output.last_hidden_state, expected.last_hidden_state, atol=1e-4, rtol=0)
        torch.testing.assert_close(output.pooler_output, expected.pooler_output, atol=1e-4, rtol=0)
        for ours, theirs in zip(output.hidden_states, expected.hidden_states, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert model(pixels, return_dict=False)[0].shape == expected.last_hidden_state.shape


@torch.no_grad()
def test_what_is_returned_is_by_default_what_the_configuration_says():
    model, _ = qlip.attach(make_vision_model("clip"), **UNIFORM)
    model.config.output_hidden_states = True
    assert len(model([torch.zeros(3, NATIVE, NATIVE)]).hidden_states) == model.config.num_hidden_layers + 1
    model.config.return_dict = False
    assert isinstance(model([torch.zeros(3, NATIVE, NATIVE)]), tuple)


def test_split_cells_are_refused_where_cls_alone_is_given_which_would_see_no_leaf():
    with pytest.raises(ValueError, match=r"\[CLS\] sees no leaf, and this model gives \[CLS\] alone"):
        qlip.attach(make_contrastive_model("clip"), keep_split_cells=True)
    qlip.attach(make_contrastive_model("siglip"), keep_split_cells=True)


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_an_image_is_the_same_in_any_batch(kind, keeps):
    model, processor = qlip.attach(make_vision_model(kind), **TREE, keep_split_cells=keeps)
    together = model(**processor.pack(PICTURES))
    assert len({len(tree) for tree in together.leaves}) > 1
    for index, image in enumerate(PICTURES):
        alone = model(**processor.pack([image]))
        mask = together.token_mask[index]
        torch.testing.assert_close(
            together.last_hidden_state[index][mask], alone.last_hidden_state[0], atol=1e-4, rtol=0
        )
        torch.testing.assert_close(together.pooler_output[index], alone.pooler_output[0], atol=1e-4, rtol=0)
        assert (together.last_hidden_state[index][~mask] == 0).all()


@torch.no_grad()
def test_feature_maps_give_every_cell_its_leafs_feature():
    model, processor = qlip.attach(make_vision_model("clip"), **TREE)
    output = model(**processor.pack(PICTURES))
    for index, (features, tree) in enumerate(zip(output.feature_maps(), output.leaves, strict=True)):
        assert features.shape == (32, *tree.grid)
        for number, (row, col, size) in enumerate(tree.boxes.tolist()):
            expected = output.last_hidden_state[index, 1 + number]
            assert (features[:, row : row + size, col : col + size] == expected[:, None, None]).all()


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@torch.no_grad()
def test_zero_shot_at_the_native_size_is_the_untouched_models(kind):
    plain = make_contrastive_processor()
    inputs = plain(images=NATIVES, text=TEXTS, return_tensors="pt", padding="max_length", max_length=24)
    expected = make_contrastive_model(kind)(**inputs)
    model, processor = qlip.attach(make_contrastive_model(kind), plain, **UNIFORM)
    ours = processor(images=NATIVES, text=TEXTS, return_tensors="pt", padding="max_length", max_length=24)
    output = model(**ours)
    torch.testing.assert_close(output.logits_per_image, expected.logits_per_image, atol=1e-4, rtol=0)
    assert expected.logits_per_image.std() > 0.01


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@torch.no_grad()
def test_zero_shot_at_native_resolution(kind):
    model, processor = qlip.attach(make_contrastive_model(kind), make_contrastive_processor(), **TREE)
    images = processor(images=PICTURES, return_tensors="pt")
    embeds = model.get_image_features(**images).pooler_output
    pooled = model.vision_model(**images).pooler_output
    assert images["leaf_grids"].tolist() == [[4, 4], [8, 12], [4, 7], [10, 10]]
    torch.testing.assert_close(embeds, model.visual_projection(pooled) if kind == "clip" else pooled)
    text = processor(text=TEXTS, return_tensors="pt", padding="max_length", max_length=24)
    text_embeds = model.get_text_features(**text).pooler_output
    cosine = torch.nn.functional.normalize(embeds, dim=1) @ torch.nn.functional.normalize(text_embeds, dim=1).T
    scale, bias = model.logit_scale.exp(), getattr(model, "logit_bias", 0.0)
    torch.testing.assert_close(model(**images, **text).logits_per_image, cosine * scale + bias)


def test_zero_shot_pipeline():
    model, processor = qlip.attach(make_contrastive_model("clip"), make_contrastive_processor(), **TREE)
    pipe = pipeline(
        "zero-shot-image-classification",
        model=model,
        tokenizer=processor.tokenizer,
        image_processor=processor.image_processor,
    )
    said = pipe(PICTURES[1], candidate_labels=TEXTS, hypothesis_template="{}")
    with torch.no_grad():
        inputs = processor(images=PICTURES[1:2], text=TEXTS, return_tensors="pt", padding=True)
        expected = model(**inputs).logits_per_image[0].softmax(0)
    scores = {answer["label"]: answer["score"] for answer in said}
    assert [scores[text] for text in TEXTS] == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("make", [lambda: make_vision_model("clip"), lambda: make_contrastive_model("clip")])
def test_saved_and_loaded_by_transformers_alone_then_attached(tmp_path, make):
    make().save_pretrained(tmp_path / "plain")
    model, processor = qlip.attach(make(), make_contrastive_processor(), **TREE)
    model.save_pretrained(tmp_path / "qlip")
    processor.save_pretrained(tmp_path / "qlip")
    plain, ours = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "qlip"))
    assert plain == ours
    config = json.loads((tmp_path / "qlip" / "config.json").read_text())
    assert config.pop("qlip")["max_tokens"] == 40
    assert config == json.loads((tmp_path / "plain" / "config.json").read_text())
    loaded, again = qlip.attach(
        AutoModel.from_pretrained(tmp_path / "qlip"), AutoProcessor.from_pretrained(tmp_path / "qlip", backend="pil")
    )
    images = processor(images=PICTURES, return_tensors="pt")
    assert all(torch.equal(value, images[name]) for name, value in again(images=PICTURES, return_tensors="pt").items())
    vision = getattr(model, "vision_model", model)
    with torch.no_grad():
        expected = vision(**images).pooler_output
        assert torch.equal(getattr(loaded, "vision_model", loaded)(**images).pooler_output, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_processor_alone_is_saved_as_the_one_that_was_given(tmp_path, kind):
    """transformers alone loads the folder; attached again, the settings come from the model's configuration."""
    plain = CLIPImageProcessorPil(size={"shortest_edge": NATIVE}, crop_size=NATIVE, image_mean=[0.1, 0.2, 0.3])
    model, processor = qlip.attach(make_vision_model(kind), plain, **TREE)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    assert loaded.to_dict() == plain.to_dict()
    _, again = qlip.attach(AutoModel.from_pretrained(tmp_path), loaded)
    expected = processor.pack(PICTURES)
    assert all(torch.equal(value, expected[name]) for name, value in again.pack(PICTURES).items())


def test_an_image_processor_alone_comes_back_from_detach():
    plain = CLIPImageProcessorPil(image_mean=[0.1, 0.2, 0.3])
    model, processor = qlip.attach(make_vision_model("clip"), plain, **TREE)
    assert processor.image_mean == [0.1, 0.2, 0.3]
    assert processor.native_grid == 4
    expected = copy.deepcopy(model.state_dict())
    model, again = qlip.detach(model, processor)
    assert again is plain
    assert model.state_dict().keys() == expected.keys()
    assert model(torch.zeros(1, 3, NATIVE, NATIVE)).last_hidden_state.shape == (1, 17, 32)


@pytest.mark.parametrize(("kind", "mean"), [("clip", 0.48145466), ("siglip", 0.5), ("dinov2", 0.485)], ids=KINDS)
def test_without_a_processor_the_towers_usual_mean_is_taken(kind, mean):
    assert qlip.attach(make_vision_model(kind))[1].image_mean[0] == mean


def test_errors_of_the_forward_pass():
    model, processor = qlip.attach(make_vision_model("clip"), **TREE)
    with pytest.raises(ValueError, match="pixel_values is None"):
        model()
    for nothing in ([], torch.zeros(0, 3, NATIVE, NATIVE)):
        with pytest.raises(ValueError, match="pixel_values hold no image; give at least one"):
            model(nothing)
    with pytest.raises(ValueError, match="output_attentions"):
        model(torch.zeros(1, 3, NATIVE, NATIVE), output_attentions=True)
    with pytest.raises(ValueError, match="57 x 56 pixels"):
        model(torch.zeros(1, 3, 57, NATIVE))
    with pytest.raises(TypeError, match=r"the image is torch\.uint8"):
        model(torch.zeros(1, 3, NATIVE, NATIVE, dtype=torch.uint8))
