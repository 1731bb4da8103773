"""QLIPVisionModel: what it shares with the model it wraps, and what must not depend on the batch."""

from __future__ import annotations

import dataclasses
import math
import os

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel, PreTrainedConfig, SiglipVisionConfig, SiglipVisionModel

from qlip import CoordinateMLP, Leaves, QLIPConfig, QLIPImageProcessor, QLIPVisionModel
from qlip.backbones.transformers import run_one_by_one
from qlip.patches import CutImage

SHAPE = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 112,
    "patch_size": 14,
}
UNIFORM = QLIPConfig(alpha=0.0, max_tokens=None)
TREE = QLIPConfig(criterion="gradient", geometry="grid", coarsest="any", alpha=0.9, max_tokens=60, llm_size_bias=0.0)


@pytest.fixture(params=["clip", "siglip"])
def wrapped(request):
    if request.param == "clip":
        model = CLIPVisionModel(CLIPVisionConfig(**SHAPE))
    else:
        model = SiglipVisionModel(SiglipVisionConfig(**SHAPE))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Smooth blobs, so that trees are neither uniform nor coarsest."""
    noise = torch.randn(1, 3, height // 14, width // 14, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, (height, width), mode="bicubic")[0]


FOUR_SIZES = [picture(112, 112, 1), picture(224, 336, 2), picture(448, 14, 3), picture(140, 462, 4)]


@pytest.mark.parametrize("select_layer", [-1, -2, 0, 3])
def test_uniform_grid_of_the_native_size_equals_the_wrapped_model(wrapped, select_layer):
    images = torch.stack([picture(112, 112, seed) for seed in range(3)])
    with torch.no_grad():
        expected = wrapped(images, output_hidden_states=True)
        model = QLIPVisionModel(wrapped, UNIFORM, select_layer)
        output = model(images, pool=True)
    hidden = expected.hidden_states[select_layer][:, int(model.has_cls) :]
    torch.testing.assert_close(torch.stack(output.features), hidden, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.pooled, expected.pooler_output, atol=1e-5, rtol=1e-5)


def test_parameter_names_are_those_of_the_wrapped_model(wrapped):
    names = set(wrapped.state_dict())
    prior = CoordinateMLP(SHAPE["hidden_size"], hidden=8)
    model = QLIPVisionModel(wrapped, UNIFORM)
    model.set_prior(prior)
    assert set(model.state_dict()) == names


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"size_bias": 1.0},
        {"thumbnail": True, "coarsest": "native", "max_tokens": None},
        {"criterion": "random", "layout": "centered", "max_tokens": 200},
        {"interpolation": "bilinear", "leaf_position": "mean"},
    ],
    ids=str,
)
def test_an_image_has_the_same_features_in_any_batch(wrapped, changes):
    model = QLIPVisionModel(wrapped, dataclasses.replace(TREE, **changes))
    with torch.no_grad():
        together = model(FOUR_SIZES, pool=True)
        for index, image in enumerate(FOUR_SIZES):
            alone = model([image], pool=True)
            torch.testing.assert_close(together.features[index], alone.features[0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(together.pooled[index], alone.pooled[0], atol=1e-5, rtol=1e-5)
            assert torch.equal(together.leaves[index].boxes, alone.leaves[0].boxes)


def test_layers_above_the_selected_one_do_not_run(wrapped):
    model = QLIPVisionModel(wrapped, UNIFORM, select_layer=-2)
    model.encoder.layers[-1].register_forward_pre_hook(lambda *_: pytest.fail("the last layer ran"))
    model([picture(112, 112)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_features_come_in_the_models_dtype(wrapped, dtype):
    with torch.no_grad():
        expected = QLIPVisionModel(wrapped, TREE)(FOUR_SIZES).features
        output = QLIPVisionModel(wrapped.to(dtype), TREE)([image.to(dtype) for image in FOUR_SIZES])
    tolerance = {torch.float32: 1e-6, torch.float16: 0.02, torch.bfloat16: 0.15}[dtype]
    for features, reference in zip(output.features, expected, strict=True):
        assert features.dtype == dtype
        if len(features) == len(reference):  # rounded pixels may move a block across the threshold
            assert (features.float() - reference).abs().mean() < tolerance


def test_size_bias_equals_repeating_each_leafs_key_as_often_as_it_has_cells(wrapped):
    """Proportional attention: s = 1 weighs a key as that many equal keys would."""
    config = dataclasses.replace(TREE, size_bias=1.0)
    model = QLIPVisionModel(wrapped, config, select_layer=1)
    image = FOUR_SIZES[1]
    layer = model.encoder.layers[0]
    with torch.no_grad():
        output = model([image])
        bare = QLIPVisionModel(wrapped, dataclasses.replace(config, size_bias=0.0), select_layer=0)([image])
        leaves = output.leaves[0]
        assert leaves.sizes.max() > 1
        tokens = bare.features[0]
        cls = []
        if model.has_cls:
            first = model.embeddings.class_embedding + model.embeddings.position_embedding.weight[0]
            cls = [model.pre_layrnorm(first)[None]]
        repeated = torch.cat([*cls, tokens.repeat_interleave(leaves.sizes**2, 0)])[None]
        first_copy = len(cls) + (leaves.sizes**2).cumsum(0) - leaves.sizes**2
        expected = layer(repeated, None)[0, first_copy]
    torch.testing.assert_close(output.features[0], expected, atol=1e-5, rtol=1e-5)


def test_thumbnail_is_the_wrapped_models_view_of_the_downsized_image(wrapped):
    image = FOUR_SIZES[1]
    model = QLIPVisionModel(wrapped, dataclasses.replace(TREE, thumbnail=True))
    small = F.interpolate(image[None], (112, 112), mode="bicubic", antialias=True)
    with torch.no_grad():
        output = model([image])
        expected = wrapped(small, output_hidden_states=True).hidden_states[-2][0, int(model.has_cls) :]
        leaves_only = QLIPVisionModel(wrapped, TREE)([image]).features[0]
    torch.testing.assert_close(output.features[0][:64], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.features[0][64:], leaves_only, atol=1e-5, rtol=1e-5)
    places = model.language_span(output.leaves[0]).positions
    assert len(places) == len(output.features[0])
    assert torch.equal(places[:64], torch.arange(64.0))


def test_language_positions_and_sizes_follow_the_settings(wrapped):
    tree = QLIPVisionModel(wrapped, TREE).partition(FOUR_SIZES[1])
    sequential = QLIPVisionModel(wrapped, dataclasses.replace(TREE, llm_positions="sequential"))
    assert sequential.language_span(tree).positions is None
    assert sequential.language_span(tree).sizes is None
    biased = QLIPVisionModel(wrapped, dataclasses.replace(TREE, llm_size_bias=0.5))
    assert torch.equal(biased.language_span(tree).sizes, tree.sizes.float().sqrt())  # log(size^2) half: log(size)
    assert biased.language_span(tree).positions.max() <= 63


@pytest.mark.parametrize("changes", [{}, {"llm_size_bias": 0.5}, {"thumbnail": True}], ids=str)
def test_with_native_weight_all_tokens_of_an_image_weigh_as_many_as_it_has_native_cells(wrapped, changes):
    model = QLIPVisionModel(wrapped, dataclasses.replace(TREE, llm_weight="native", **changes))
    tree = model.partition(FOUR_SIZES[1])
    sizes = model.language_span(tree).sizes
    assert sizes.square().sum().item() == pytest.approx(64)
    if not changes:
        assert (sizes == sizes[0]).all()
        assert model.language_span(Leaves.uniform((8, 8))).sizes is None


def test_coarsest_native_caps_leaves_at_a_native_cell(wrapped):
    flat = torch.zeros(3, 448, 448)
    assert QLIPVisionModel(wrapped, QLIPConfig(coarsest="any")).partition(flat).sizes.max() == 16
    assert QLIPVisionModel(wrapped, QLIPConfig(coarsest="native")).partition(flat).sizes.max() == 4


@pytest.mark.parametrize(("budget", "largest"), [(None, 4), (64, 4), (63, 8), (16, 8), (15, 16), (4, 16)])
def test_a_budget_below_the_native_cells_gives_coarser_leaves_of_the_same_picture(wrapped, budget, largest):
    """32 x 32 cells: 64 leaves of a native cell each, 16 of twice its side, 4 roots."""
    processor = QLIPImageProcessor(14, 112, qlip=QLIPConfig(coarsest="native", max_tokens=budget))
    (pixels,) = processor.preprocess(Image.new("RGB", (448, 448), "teal"), return_tensors="pt")["pixel_values"]
    tree = QLIPVisionModel(wrapped, processor.qlip).partition(pixels)
    assert tree.grid == (32, 32)
    assert tree.sizes.max() == largest


def test_the_prior_gives_the_positions_and_keeps_the_native_grid(wrapped, tmp_path):
    prior = CoordinateMLP(SHAPE["hidden_size"], hidden=16)
    prior.save(tmp_path / "prior.safetensors")
    config = QLIPConfig(alpha=0.0, max_tokens=None, interpolation="mlp", mlp=str(tmp_path / "prior.safetensors"))
    model = QLIPVisionModel(wrapped, config)
    model.load_prior()
    plain = QLIPVisionModel(wrapped, UNIFORM)
    with torch.no_grad():
        native, larger = picture(112, 112), picture(224, 224)
        torch.testing.assert_close(model([native]).features[0], plain([native]).features[0], atol=1e-4, rtol=1e-4)
        assert not torch.allclose(model([larger]).features[0], plain([larger]).features[0], atol=1e-3)


def test_a_saved_model_loads_with_from_pretrained(wrapped, tmp_path):
    wrapped.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = QLIPVisionModel(wrapped, TREE)(FOUR_SIZES)
        loaded = QLIPVisionModel.from_pretrained(str(tmp_path), TREE)(FOUR_SIZES)
    for ours, theirs in zip(loaded.features, expected.features, strict=True):
        assert torch.equal(ours, theirs)


def test_a_folder_without_a_configuration_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} has no config.json; it must be the folder of a model"):
        QLIPVisionModel.from_pretrained(str(tmp_path))


def test_a_model_that_is_neither_here_nor_on_the_hub_is_named(monkeypatch):
    monkeypatch.setattr(PreTrainedConfig, "get_config_dict", raise_unreachable)
    with pytest.raises(OSError, match="someone/clip: We couldn't connect"):
        QLIPVisionModel.from_pretrained("someone/clip")


def raise_unreachable(path):
    """As transformers does where the hub can't be reached."""
    raise OSError("We couldn't connect to 'https://huggingface.co' to load the files")


def test_errors_name_the_value(wrapped):
    with pytest.raises(TypeError, match="Linear is none of CLIPVisionModel"):
        QLIPVisionModel(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="select_layer is 9"):
        QLIPVisionModel(wrapped, select_layer=9)
    with pytest.raises(ValueError, match="embeddings of 7, the model has 48"):
        QLIPVisionModel(wrapped).set_prior(CoordinateMLP(7, hidden=4))
    with pytest.raises(ValueError, match="100 x 112"):
        QLIPVisionModel(wrapped)([torch.zeros(3, 100, 112)])
    with pytest.raises(ValueError, match="max_tokens is 1,"):
        QLIPVisionModel(wrapped, QLIPConfig(max_tokens=1))([torch.zeros(3, 112, 112)])


def test_leaves_are_on_the_cpu_and_cover_the_image(wrapped):
    tree = QLIPVisionModel(wrapped, TREE).partition(FOUR_SIZES[3])
    assert isinstance(tree, Leaves)
    assert int((tree.sizes**2).sum()) == math.prod(tree.grid)


def test_layers_that_take_no_mask_run_image_by_image():
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    hidden = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, 1, 1, 5)
    mask[1, ..., 3:] = torch.finfo(torch.float32).min
    with torch.no_grad():
        output = run_one_by_one(layer, hidden, mask)
        torch.testing.assert_close(output[:1], layer(hidden[:1]))
        torch.testing.assert_close(output[1:, :3], layer(hidden[1:, :3]))
    with pytest.raises(ValueError, match="size_bias is set"):
        run_one_by_one(layer, hidden, mask + 1)


def test_images_without_what_the_settings_ask_for_are_named(wrapped):
    model = QLIPVisionModel(wrapped, dataclasses.replace(TREE, thumbnail=True))
    with pytest.raises(ValueError, match="there is no image; give at least one"):
        model.encode_cut([])
    whole = CutImage(Leaves.uniform((2, 2)), torch.zeros(4, 3, 14, 14))
    with pytest.raises(ValueError, match=r"image 0 has no thumbnail, but the settings ask for one"):
        model.encode_cut([whole])
    for channels in (1, 4):
        with pytest.raises(ValueError, match=f"an image has {channels} channels; the model takes 3"):
            model([torch.zeros(3, 28, 28), torch.zeros(channels, 28, 28)])


def test_a_prior_that_was_written_again_is_read_again(wrapped, tmp_path):
    first, second = (CoordinateMLP(SHAPE["hidden_size"], hidden=16) for _ in range(2))
    file = tmp_path / "prior.safetensors"
    first.save(file)
    settings = QLIPConfig(interpolation="mlp", mlp=str(file))
    model = QLIPVisionModel(wrapped)
    model.change_settings(settings)
    known = model.prior
    model.change_settings(settings)
    assert model.prior is known
    second.save(file)
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))  # clocks of some file systems tick in seconds
    model.change_settings(settings)
    assert torch.equal(model.prior.layers[0].weight, second.layers[0].weight)
    model.set_prior(other := CoordinateMLP.load(file))  # in place of that of the settings, whatever becomes of the file
    model.change_settings(settings)
    assert torch.equal(model.prior.layers[0].weight, other.layers[0].weight)
    first.save(tmp_path / "elsewhere.safetensors")
    model.set_prior(other := CoordinateMLP.load(tmp_path / "elsewhere.safetensors"))
    model.change_settings(settings)
    assert torch.equal(model.prior.layers[0].weight, other.layers[0].weight)
    file.unlink()
    model.change_settings(settings)  # what was read is kept


def test_a_strip_of_one_cell_s_width_is_cut_either_way(wrapped):
    model = QLIPVisionModel(wrapped)
    side, size = 64 * model.adapter.patch_size, model.adapter.patch_size
    upright = torch.randn(3, side, size)
    assert len(model.partition(upright)) == len(model.partition(upright.transpose(1, 2).contiguous())) == 64
