"""Training turns a text-only model into one with images by LLaVA's two calls; the result is transformers' Llava."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import CLIPImageProcessorPil, CLIPVisionModel

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model import LlavaConfig, LlavaLlamaForCausalLM
from tests.llava.checkpoints import IMAGE_TOKEN, TEXT, VOCABULARY, llava_state

PIXELS = torch.randn(1, 3, 112, 112, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def files(tmp_path_factory, oracle) -> Path:
    """A CLIP checkpoint, and the projector that a first stage of training leaves."""
    folder = tmp_path_factory.mktemp("files")
    vision = CLIPVisionModel(oracle.config.vision_config)
    vision.load_state_dict(oracle.model.vision_tower.state_dict())
    vision.save_pretrained(folder / "clip")
    square = {"height": 112, "width": 112}
    CLIPImageProcessorPil(size={"shortest_edge": 112}, crop_size=square).save_pretrained(folder / "clip")
    state = {name: tensor for name, tensor in llava_state(oracle).items() if "mm_projector" in name}
    torch.save(state, folder / "mm_projector.bin")
    return folder


@pytest.fixture
def model(oracle) -> LlavaLlamaForCausalLM:
    """The language model alone."""
    model = LlavaLlamaForCausalLM(LlavaConfig(**TEXT)).eval()
    state = llava_state(oracle)
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    assert model.get_vision_tower() is None
    return model


def arguments(files: Path, **changes: Any) -> Namespace:
    """LLaVA's ModelArguments."""
    values = {
        "vision_tower": str(files / "clip"),
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_projector_type": "mlp2x_gelu",
        "mm_patch_merge_type": "flat",
        "pretrain_mm_mlp_adapter": str(files / "mm_projector.bin"),
        "tune_mm_mlp_adapter": False,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
    }
    return Namespace(**{**values, **changes})


@pytest.mark.parametrize("fsdp", [None, "", ["full_shard"]], ids=str)
@torch.no_grad()
def test_a_text_only_model_gets_images(model, oracle, files, fsdp, tmp_path):
    model.get_model().initialize_vision_modules(model_args=arguments(files), fsdp=fsdp)
    long = torch.tensor([[1, 20, *[IMAGE_TOKEN] * 64, 30]])
    expected = oracle(long, pixel_values=PIXELS, attention_mask=torch.ones_like(long)).logits
    got = model(torch.tensor([[1, 20, IMAGE_TOKEN_INDEX, 30]]), images=PIXELS).logits
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    assert (model.config.mm_hidden_size, model.config.mm_projector_type) == (64, "mlp2x_gelu")
    assert model.config.use_mm_proj is True
    assert any("vision_tower" in name for name in model.state_dict()) is not bool(fsdp)
    model.save_pretrained(tmp_path)  # the configuration says whether the tower's weights are there
    assert (json.loads((tmp_path / "config.json").read_text()).get("mm_vision_config") is None) is bool(fsdp)


def test_the_projector_is_trained_and_the_tower_is_not(model, files):
    model.requires_grad_(False)
    model.get_model().initialize_vision_modules(arguments(files, pretrain_mm_mlp_adapter=None))
    assert all(parameter.requires_grad for parameter in model.get_model().mm_projector.parameters())
    assert not any(parameter.requires_grad for parameter in model.get_vision_tower().parameters())
    model.get_model().mm_projector.requires_grad_(False)
    model.get_model().initialize_vision_modules(arguments(files))  # again, as a second stage does
    assert all(parameter.requires_grad for parameter in model.get_model().mm_projector.parameters())


def test_what_does_not_fit_is_refused(model, files):
    with pytest.raises(ValueError, match=r"mm_projector\.bin is not a 'linear' projector: '0\.bias' differs"):
        model.get_model().initialize_vision_modules(arguments(files, mm_projector_type="linear"))
    with pytest.raises(ValueError, match="mm_patch_merge_type is 'unpad'; allowed are 'flat', 'spatial'"):
        model.get_model().initialize_vision_modules(arguments(files, mm_patch_merge_type="unpad"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mm_vision_select_layer": -1}, "mm_vision_select_layer is -1, the model was loaded with -2"),
        (
            {"mm_vision_select_feature": "cls_patch"},
            "mm_vision_select_feature is 'cls_patch', the model .* 'patch'",
        ),
        ({"mm_projector_type": "linear"}, "mm_projector_type is 'linear', the model was loaded with 'mlp2x_gelu'"),
        ({"qlip": {"alpha": 0.5}}, r"qlip is {'alpha': 0\.5}, the model was loaded with None"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_model_that_has_its_parts_keeps_them_and_its_configuration_says_so(model, files, changes, words):
    parts = model.get_model()
    parts.initialize_vision_modules(arguments(files))
    before = model.config.to_dict()
    with pytest.raises(ValueError, match=words):
        parts.initialize_vision_modules(arguments(files, **changes))
    assert model.config.to_dict() == before
    again = arguments(files)
    del again.mm_projector_type, again.mm_vision_select_layer
    parts.initialize_vision_modules(again)
    assert model.config.to_dict() == before


def test_a_projector_of_another_size_of_model_is_named(model, files, tmp_path):
    state = {name: tensor[:5] for name, tensor in torch.load(files / "mm_projector.bin").items()}
    torch.save(state, tmp_path / "13b.bin")
    with pytest.raises(ValueError, match=r"13b\.bin: mm_projector\.0\.weight is \(5, 64\), the model's \(64, 64\)"):
        model.get_model().initialize_vision_modules(arguments(files, pretrain_mm_mlp_adapter=tmp_path / "13b.bin"))


def test_a_newline_is_drawn_once_and_taken_from_a_first_stage(model, files, tmp_path):
    """LLaVA's first stage does not write it: without it in the file it stays as drawn, of deviation 1 / sqrt(64)."""
    torch.manual_seed(0)
    trunk, tiles = model.get_model(), {"mm_patch_merge_type": "spatial_unpad"}
    trunk.initialize_vision_modules(arguments(files, **tiles))
    drawn = trunk.image_newline.detach().clone()
    assert drawn.shape == (64,) and drawn.std() == pytest.approx(1 / 8, rel=0.3)
    state = torch.load(files / "mm_projector.bin")
    torch.save({**state, "model.image_newline": torch.ones(64)}, tmp_path / "stage1.bin")
    trunk.initialize_vision_modules(arguments(files, **tiles))
    assert torch.equal(trunk.image_newline, drawn)
    trunk.initialize_vision_modules(arguments(files, pretrain_mm_mlp_adapter=tmp_path / "stage1.bin", **tiles))
    assert torch.equal(trunk.image_newline, torch.ones(64)) and trunk.image_newline.requires_grad


class Words:
    """A tokenizer as far as it takes: it knows how many tokens there are, and the names of the new ones."""

    def __init__(self) -> None:
        self.added: list[str] = []

    def __len__(self) -> int:
        return VOCABULARY + len(self.added)

    def add_tokens(self, tokens: list[str], special_tokens: bool) -> int:
        assert special_tokens
        new = [token for token in tokens if token not in self.added]
        self.added += new
        return len(new)

    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]:
        return [VOCABULARY + self.added.index(token) for token in tokens]


@pytest.mark.parametrize(
    ("flags", "added"),
    [
        ({}, []),
        ({"mm_use_im_patch_token": True}, ["<im_patch>"]),
        ({"mm_use_im_start_end": True}, ["<im_start>", "<im_end>"]),
        ({"mm_use_im_patch_token": True, "mm_use_im_start_end": True}, ["<im_patch>", "<im_start>", "<im_end>"]),
    ],
)
def test_image_tokens_join_the_vocabulary_as_its_mean(model, files, flags, added):
    tokenizer = Words()
    tables = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    means = [table.detach().mean(0) for table in tables]
    args = arguments(files, pretrain_mm_mlp_adapter=None, **flags)
    for _ in range(2):  # the second time there is nothing to add
        model.initialize_vision_tokenizer(args, tokenizer=tokenizer)
        assert tokenizer.added == added
        for table, mean in zip((model.get_input_embeddings(), model.get_output_embeddings()), means, strict=True):
            assert table.weight.shape == (VOCABULARY + len(added), 64)
            for row in table.weight[VOCABULARY:]:
                torch.testing.assert_close(row, mean)


@pytest.mark.parametrize("whole", [True, False], ids=["a whole table", "the new rows alone"])
def test_a_first_stages_embeddings_are_taken_over(model, tmp_path, files, whole):
    rows = torch.randn(VOCABULARY + 2 if whole else 2, 64)
    torch.save({"model.embed_tokens.weight": rows}, tmp_path / "adapter.bin")
    args = arguments(
        files, mm_use_im_start_end=True, tune_mm_mlp_adapter=True, pretrain_mm_mlp_adapter=tmp_path / "adapter.bin"
    )
    model.requires_grad_(False)
    model.initialize_vision_tokenizer(args, tokenizer=Words())
    assert torch.equal(model.get_input_embeddings().weight[-2:], rows[-2:])
    assert model.get_input_embeddings().weight.requires_grad
    assert not model.get_output_embeddings().weight.requires_grad


def test_embeddings_of_other_tokens_are_refused(model, tmp_path, files):
    torch.save({"model.embed_tokens.weight": torch.zeros(3, 64)}, tmp_path / "adapter.bin")
    args = arguments(files, mm_use_im_start_end=True, pretrain_mm_mlp_adapter=tmp_path / "adapter.bin")
    with pytest.raises(
        ValueError, match=r"adapter\.bin: model\.embed_tokens\.weight is \(3, 64\); allowed are \(386, 64\)"
    ):
        model.initialize_vision_tokenizer(args, Words())


class GatheredParameters:
    """DeepSpeed's context, for one process: parameters are whole inside, and changes stay."""

    def __init__(self, parameters, modifier_rank):
        assert modifier_rank == 0
        self.parameters = parameters

    def __enter__(self):
        for parameter in self.parameters:
            parameter.data = parameter.whole

    def __exit__(self, *_):
        for parameter in self.parameters:
            parameter.whole, parameter.data = parameter.data, torch.empty(0)


def shard(model: torch.nn.Module) -> None:
    """Leaves parameters as ZeRO-3 does outside of its context: with an id, and without elements."""
    for number, parameter in enumerate(model.parameters()):
        parameter.ds_id, parameter.whole, parameter.data = number, parameter.data, torch.empty(0)


def test_sharded_parameters_are_made_whole_to_be_set(model, oracle, files, tmp_path, monkeypatch):
    """Outside of DeepSpeed's context what is written to them is lost, without an error."""
    module = ModuleType("deepspeed")
    module.zero = SimpleNamespace(GatheredParameters=GatheredParameters)
    monkeypatch.setitem(sys.modules, "deepspeed", module)
    marks = torch.randn(2, TEXT["hidden_size"])
    state = torch.load(files / "mm_projector.bin") | {"model.embed_tokens.weight": marks}
    torch.save(state, tmp_path / "stage1.bin")
    given = arguments(files, mm_use_im_start_end=True, pretrain_mm_mlp_adapter=str(tmp_path / "stage1.bin"))
    model.get_model().initialize_vision_modules(arguments(files, pretrain_mm_mlp_adapter=None))
    mean = model.lm_head.weight.detach().mean(0)
    model.resize_token_embeddings(VOCABULARY + 2, mean_resizing=False)  # DeepSpeed's own part of transformers
    shard(model)
    model.get_model().initialize_vision_modules(given)
    model.initialize_vision_tokenizer(given, Words())
    projector = model.get_model().mm_projector[0].weight.whole
    assert torch.equal(projector, state["model.mm_projector.0.weight"])
    assert torch.equal(model.get_input_embeddings().weight.whole[-2:], marks)
    torch.testing.assert_close(model.lm_head.weight.whole[-2:], mean.expand(2, -1))
