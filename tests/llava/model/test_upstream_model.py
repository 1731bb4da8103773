"""The model, its tower and its projector answer the calls of LLaVA's scripts and of its forks.

Right values are transformers' own: its CLIPVisionModel, and its Llava's image features and logits.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
import torch
from transformers import CLIPImageProcessorPil, CLIPVisionModel

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model import LlavaConfig
from llava.model.builder import load_pretrained_model
from llava.model.llava_arch import unpad_image
from llava.model.multimodal_encoder import s2_encoder
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_projector.builder import build_vision_projector
from tests.llava.checkpoints import IMAGE_TOKEN, PICTURE, PROMPT, make_llava_checkpoint

PIXELS = torch.randn(3, 3, 112, 112, generator=torch.Generator().manual_seed(0))
QUADTREE = {"criterion": "gradient", "coarsest": "any", "alpha": 1.2, "max_tokens": None}


@pytest.fixture(scope="module")
def vision(oracle) -> CLIPVisionModel:
    vision = CLIPVisionModel(oracle.config.vision_config).eval()
    vision.load_state_dict(oracle.model.vision_tower.state_dict())
    return vision


@pytest.fixture(scope="module")
def tower_folder(tmp_path_factory, vision) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    vision.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 112}, crop_size={"height": 112, "width": 112}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(make_llava_checkpoint(tmp_path_factory.mktemp("llava")))


@pytest.fixture(scope="module")
def model(folder):
    return load_pretrained_model(folder, device="cpu")[1]


@torch.no_grad()
def test_images_become_one_tensor_of_projected_features(model, oracle):
    expected = torch.stack(list(oracle.model.get_image_features(PIXELS).pooler_output))
    for images in (PIXELS, list(PIXELS)):
        features = model.encode_images(images)
        assert features.shape == (3, 64, 64)
        torch.testing.assert_close(features, expected, atol=1e-4, rtol=0)
    tower, projector = model.get_model().get_vision_tower(), model.get_model().mm_projector
    torch.testing.assert_close(projector(tower(PIXELS)), expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_the_tower_is_read_as_forks_read_it(model, vision):
    tower = model.get_vision_tower()
    hidden = vision(PIXELS, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(tower(PIXELS), hidden[:, 1:], atol=1e-5, rtol=0)
    for inner in (tower.vision_tower, tower.vision_tower.vision_model):
        outputs = inner(PIXELS, output_hidden_states=True)
        torch.testing.assert_close(tower.feature_select(outputs), hidden[:, 1:], atol=1e-5, rtol=0)
    assert tower.vision_tower.vision_model.embeddings.num_patches == 64
    assert not any("vision_model" in name for name in model.state_dict())
    assert (tower.is_loaded, tower.hidden_size, tower.num_patches, tower.num_patches_per_side) == (True, 64, 64, 8)
    assert tower.config.image_size == 112
    assert (tower.dtype, tower.device) == (torch.float32, torch.device("cpu"))
    assert tower.dummy_feature.shape == (1, 64)


@pytest.mark.parametrize("option", ["output_hidden_states", "output_attentions"])
@torch.no_grad()
def test_what_the_language_model_is_asked_for_leaves_later_answers_alone(folder, oracle, expected, option):
    """transformers then hooks the layers of the tower inside it a second time."""
    model = load_pretrained_model(folder, device="cpu")[1]
    for _ in range(2):
        found = model(PROMPT, images=PICTURE, **{option: True})
        torch.testing.assert_close(found.logits, expected, atol=1e-4, rtol=0)
        ids = torch.tensor([[1, 20] + [IMAGE_TOKEN] * 64 + [30, 31]])
        theirs = oracle(ids, pixel_values=PICTURE, **{option: True})
        name = option.removeprefix("output_")
        torch.testing.assert_close(found[name], theirs[name], atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_quadtree_gives_a_list_where_counts_differ_and_a_tensor_where_they_agree(folder):
    flat, busy = torch.zeros(3, 112, 112), PIXELS[0]
    model = load_pretrained_model(folder, device="cpu", qlip=QUADTREE)[1]
    tower = model.get_vision_tower()
    counts = [tower.count_tokens(image) for image in (flat, busy)]
    assert counts[0] < counts[1]
    for features in (model.encode_images([flat, busy]), tower([flat, busy])):
        assert [feature.shape for feature in features] == [(count, 64) for count in counts]
    assert model.encode_images([busy, busy]).shape == (2, counts[1], 64)
    assert tower.feature_select(tower.vision_tower([busy, busy])).shape == (2, counts[1], 64)
    assert tower.vision_tower.vision_model.embeddings is tower.vision_tower.embeddings


@pytest.mark.parametrize("name", ["mm_vision_tower", "vision_tower"])
@torch.no_grad()
def test_a_tower_is_built_from_training_arguments(tower_folder, vision, name):
    args = Namespace(**{name: str(tower_folder)}, mm_vision_select_layer=-3, mm_vision_select_feature="cls_patch")
    expected = vision(PIXELS, output_hidden_states=True).hidden_states[-3]
    torch.testing.assert_close(build_vision_tower(args)(PIXELS), expected, atol=1e-5, rtol=0)

    tower = build_vision_tower(args, delay_load=True)
    assert not tower.is_loaded
    assert (tower.hidden_size, tower.num_patches) == (64, 64)
    tower.load_model(device_map=None)
    assert tower.is_loaded
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    torch.testing.assert_close(tower(PIXELS), expected, atol=1e-5, rtol=0)


def test_arguments_without_a_tower_are_refused():
    with pytest.raises(ValueError, match="Namespace has neither mm_vision_tower nor vision_tower"):
        build_vision_tower(Namespace(mm_vision_select_layer=-2))
    with pytest.raises(ValueError, match="mm_vision_tower is not set"):
        build_vision_tower(LlavaConfig())


def test_a_projector_is_built_from_any_configuration():
    widths = {"mm_hidden_size": 6, "hidden_size": 10}
    projector = build_vision_projector(Namespace(mm_projector_type="mlp2x_gelu", **widths), delay_load=False)
    assert {name: tuple(tensor.shape) for name, tensor in projector.state_dict().items()} == {
        "0.weight": (10, 6), "0.bias": (10,), "2.weight": (10, 10), "2.bias": (10,),
    }  # fmt: skip
    assert build_vision_projector(Namespace(**widths)).weight.shape == (10, 6)


@torch.no_grad()
def test_inputs_are_prepared_as_llavas_forward_pass_asks_for_them(model, oracle):
    ids = torch.tensor([[1, 20, IMAGE_TOKEN_INDEX, 30], [1, 40, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    none, positions, new_mask, cache, embeds, labels = model.prepare_inputs_labels_for_multimodal(
        ids, None, mask, None, ids.masked_fill(ids < 1, -100), PIXELS[:2], image_sizes=[(112, 112)] * 2
    )
    assert none is None and cache is None
    assert new_mask.sum(1).tolist() == [67, 2]
    assert positions[0].tolist() == list(range(67))
    assert labels[0].tolist() == [1, 20, *[-100] * 64, 30]
    assert labels[1, :2].tolist() == [1, 40]
    assert (labels[1, 2:] == -100).all()
    long = torch.tensor([[1, 20, *[IMAGE_TOKEN] * 64, 30]])
    expected = oracle(long, pixel_values=PIXELS[:1], attention_mask=torch.ones_like(long)).logits
    got = model(inputs_embeds=embeds[:1], attention_mask=new_mask[:1], position_ids=positions[:1]).logits
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


def test_inputs_without_images_come_back_as_they_are(model):
    """As a fork's step of generation has them: one token after a cache, at its own position."""
    ids, positions, mask = torch.tensor([[30]]), torch.tensor([[67]]), torch.ones(1, 68)
    given = (ids, positions, mask, None, None, ids)
    assert model.prepare_inputs_labels_for_multimodal(ids, positions, mask, None, ids, None) == given


@pytest.mark.parametrize(
    ("original", "rows", "cols"),
    [
        ((100, 50), (6, 18), (0, 24)),
        ((50, 100), (0, 24), (6, 18)),
        ((7, 7), (0, 24), (0, 24)),
        ((3, 1), (8, 16), (0, 24)),
    ],
)
def test_padding_is_cut_off_again(original, rows, cols):
    """(width, height) of the picture; the rows and columns that it takes of 24 x 24, counted by hand."""
    tensor = torch.arange(2 * 24 * 24).reshape(2, 24, 24)
    assert torch.equal(unpad_image(tensor, original), tensor[:, slice(*rows), slice(*cols)])


def test_both_towers_are_found_in_one_module():
    from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower, CLIPVisionTowerS2

    assert CLIPVisionTowerS2 is s2_encoder.CLIPVisionTowerS2 and issubclass(CLIPVisionTowerS2, CLIPVisionTower)
