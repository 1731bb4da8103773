"""What a tower, its processor or a drawing is given is checked, and named where it does not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model, SiglipVisionConfig, SiglipVisionModel

from qlip import Leaves, QLIPConfig, QLIPImageProcessor, QLIPVisionModel, draw_leaves, draw_weights, extract_patches
from tests.weights import randomise

UNSPLIT = QLIPConfig(alpha=float("inf"), coarsest="native", max_tokens=None)
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def make_siglip() -> SiglipVisionModel:
    return randomise(SiglipVisionModel(SiglipVisionConfig(**SMALL, image_size=56, patch_size=14))).eval()


@torch.no_grad()
def test_a_towers_processor_has_its_sizes_and_normalises_as_its_own_does() -> None:
    """SigLIP's mean and standard deviation are 0.5, not CLIP's."""
    model = make_siglip()
    tower = QLIPVisionModel(model, UNSPLIT, select_layer=-1).eval()
    image = Image.effect_noise((56, 56), 80).convert("RGB")
    pixels = torch.from_numpy(np.asarray(image, np.float32).transpose(2, 0, 1).copy())[None] / 127.5 - 1
    expected = model(pixels, output_hidden_states=True).hidden_states[-1]
    processor = QLIPImageProcessor.for_tower(tower)
    found = tower(processor.preprocess([image], return_tensors="pt")["pixel_values"]).features[0]
    torch.testing.assert_close(found, expected[0], atol=1e-4, rtol=0)


def test_a_configuration_may_have_sides_as_pairs_of_one_number() -> None:
    model = Dinov2Model(Dinov2Config(**SMALL, image_size=[56, 56], patch_size=[14, 14])).eval()
    tower = QLIPVisionModel(model, {"max_tokens": 16})
    assert (tower.native_grid, tower.qlip) == (4, QLIPConfig(max_tokens=16))
    assert len(tower([torch.randn(3, 56, 84)]).features[0]) <= 16
    model.config.image_size = [56, 84]
    with pytest.raises(ValueError, match=r"image_size is \[56, 84\] in the .* configuration; QLIP supports square"):
        tower.native_grid  # noqa: B018


@pytest.mark.parametrize("layer", [1.5, None, "x", [], True, np.int64(-2)])
def test_a_layer_is_an_integer_or_several(layer: object) -> None:
    with pytest.raises(TypeError, match="select_layer is .*; it must be an integer, or several"):
        QLIPVisionModel(make_siglip(), select_layer=layer)  # type: ignore[arg-type]


def test_a_prior_that_was_not_read_is_named(tmp_path) -> None:
    tower = QLIPVisionModel(make_siglip(), QLIPConfig(interpolation="mlp", mlp=str(tmp_path / "prior.safetensors")))
    with pytest.raises(
        ValueError, match=r"prior.safetensors', but the model has loaded the prior None; load_prior\(\)"
    ):
        tower([torch.randn(3, 56, 56)])


def test_what_is_no_vision_model_says_what_to_give() -> None:
    with pytest.raises(TypeError, match="the vision model is a str; it must be a model"):
        QLIPVisionModel("openai/clip")  # type: ignore[arg-type]
    with torch.device("meta"):
        whole = CLIPModel(CLIPConfig())
    with pytest.raises(TypeError, match="CLIPModel is none of .*, but its part 'vision_model' is: give that"):
        QLIPVisionModel(whole)


def test_an_image_is_a_tensor() -> None:
    with pytest.raises(TypeError, match="the image is a ndarray; it must be a tensor"):
        QLIPVisionModel(make_siglip())(list(np.zeros((1, 3, 56, 56), np.float32)))


@pytest.mark.parametrize("name", ["size_bias", "llm_size_bias", "score_share", "question_share", "alpha", "max_tokens"])
@pytest.mark.parametrize("value", [10**400, 10**5000], ids=["400 digits", "5000 digits"])
def test_a_setting_larger_than_any_float_is_out_of_range(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"^{name} is .*; it must be"):
        QLIPConfig.from_dict({name: value})


def test_a_choice_is_a_text() -> None:
    with pytest.raises((TypeError, ValueError), match="criterion is array"):
        QLIPConfig(criterion=np.array([1, 2]))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("box", [[-1, 0, 1], [8, 0, 1], [7, 0, 2]])
def test_a_leaf_outside_of_its_image_is_refused_in_every_dtype(dtype: torch.dtype, box: list[int]) -> None:
    image = torch.rand(3, 16, 16, dtype=dtype)
    with pytest.raises(ValueError, match="a leaf lies outside of the image's 8 x 8 cells"):
        extract_patches(image, Leaves(torch.tensor([box]), (8, 8)), 2)


def test_drawings_name_what_they_cannot_draw() -> None:
    leaves, image = Leaves.uniform((2, 2)), Image.new("RGB", (28, 28))
    with pytest.raises(ValueError, match="weights are not all finite"):
        draw_weights(image, leaves, torch.tensor([0.0, 1.0, float("nan"), 0.0]))
    for cell in (0, -1):
        with pytest.raises(ValueError, match=f"cell is {cell}; it must be at least 1"):
            draw_leaves(image, leaves, cell=cell)


def test_a_processors_sizes_may_be_given_as_a_number_and_are_checked(tmp_path) -> None:
    QLIPImageProcessor(14, 112).save_pretrained(tmp_path)
    assert QLIPImageProcessor.from_pretrained(tmp_path, crop_size=56).native_grid == 4
    with pytest.raises(ValueError, match="patch_size is 1; it must be at least 2"):
        QLIPImageProcessor(patch_size=1)
