"""SigLIP's tower in LLaVA against transformers' SiglipVisionModel and Llava: no [CLS], a size of no whole cells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import LlavaConfig, LlavaForConditionalGeneration, SiglipImageProcessorPil, SiglipVisionModel

from llava.constants import IMAGE_TOKEN_INDEX
from llava.mm_utils import process_images
from llava.model.builder import load_empty_tower, load_pretrained_model
from llava.model.multimodal_encoder.pretrained import infer_vision_config
from llava.train.arguments import parse_arguments
from llava.train.assemble import assemble
from tests.llava.checkpoints import IMAGE_TOKEN, TEXT, VISION, llava_config, llava_state, write_tokenizer
from tests.weights import randomise

SIDE, CELLS = 59, 4  # 59 = 4 * 14 + 3, as 384 = 27 * 14 + 6
SIGLIP = {**VISION, "model_type": "siglip_vision_model", "image_size": SIDE}
UNIFORM = {"alpha": 0.0, "max_tokens": None}
PIXELS = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
PROMPT = torch.tensor([[1, 20, IMAGE_TOKEN_INDEX, 30, 31]])
LONG = torch.tensor([[1, 20] + [IMAGE_TOKEN] * CELLS**2 + [30, 31]])


def make_oracle(**vision: Any) -> LlavaForConditionalGeneration:
    config = LlavaConfig(
        vision_config={**SIGLIP, **vision},
        text_config={"model_type": "llama", **TEXT},
        image_token_index=IMAGE_TOKEN,
        image_seq_length=CELLS**2,
        vision_feature_select_strategy="full",
    )
    return randomise(LlavaForConditionalGeneration(config))


@pytest.fixture(scope="module")
def theirs() -> LlavaForConditionalGeneration:
    return make_oracle()


@pytest.fixture(scope="module")
def expected(theirs) -> torch.Tensor:
    with torch.no_grad():
        return theirs(LONG, pixel_values=PIXELS, attention_mask=torch.ones_like(LONG)).logits


def write(folder: Path, state: dict[str, torch.Tensor], **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(llava_config(**changes)))
    write_tokenizer(folder)
    return folder


def write_tower(folder: Path, theirs: LlavaForConditionalGeneration) -> str:
    tower = SiglipVisionModel(theirs.config.vision_config)
    tower.load_state_dict(theirs.model.vision_tower.state_dict())
    tower.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("place", ["inside", "beside"])
@torch.no_grad()
def test_logits_are_those_of_transformers(theirs, expected, tmp_path, place):
    state, settings = llava_state(theirs), {"mm_vision_config": SIGLIP, "mm_vision_tower": "google/siglip"}
    if place == "beside":
        state = {name: tensor for name, tensor in state.items() if "vision_tower" not in name}
        settings = {"mm_vision_tower": write_tower(tmp_path / "tower", theirs)}
    folder = write(tmp_path / "llava", state, **settings)
    _, model, processor, _ = load_pretrained_model(folder, device="cpu")
    assert model.get_vision_tower().native_tokens == CELLS**2
    torch.testing.assert_close(model(PROMPT, images=PIXELS).logits, expected, atol=1e-4, rtol=0)
    photo = Image.effect_noise((90, 70), 60).convert("RGB")
    plain = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    model.config.image_aspect_ratio = None
    assert torch.equal(process_images([photo], processor, model.config), plain(photo, return_tensors="pt").pixel_values)


@pytest.mark.parametrize("strategy", ["default", None, "cls_patch"])
def test_a_strategy_that_would_drop_a_patch_is_refused(theirs, tmp_path, strategy):
    """As transformers' class does; where the key is left out, it drops the first as well."""
    theirs.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["vision_feature_select_strategy"]
    named = {} if strategy is None else {"vision_feature_select_strategy": strategy}
    (tmp_path / "config.json").write_text(json.dumps({**config, **named}))
    with pytest.raises(ValueError, match="config.json: vision_feature_select_strategy is .*allowed"):
        load_pretrained_model(tmp_path, device="cpu")


@torch.no_grad()
def test_the_uniform_tree_gives_the_same(theirs, expected, tmp_path):
    """SigLIP's convolution leaves out the pixels beyond the last whole cell; the tree's image has none."""
    folder = write(tmp_path, llava_state(theirs), mm_vision_config=SIGLIP, qlip=UNIFORM)
    _, model, processor, _ = load_pretrained_model(folder, device="cpu")
    whole = PIXELS[..., : CELLS * 14, : CELLS * 14]
    torch.testing.assert_close(model(PROMPT, images=whole).logits, expected, atol=1e-4, rtol=0)
    large = torch.randn(3, 70, 112, generator=torch.Generator().manual_seed(1))
    assert model.get_vision_tower().count_tokens(large) == 5 * 8
    assert processor.crop_size["height"] == CELLS * 14


@pytest.mark.parametrize("published", [False, True])
@torch.no_grad()
def test_a_tower_without_its_last_layer_and_head_is_read_at_its_end(tmp_path, published):
    """As LLaVA-NeXT's checkpoints hold it: its features are then those of the second last layer.

    Also where mm_vision_tower is the folder of the published tower, whose configuration has all layers.
    """
    side = CELLS * 14
    theirs = make_oracle(image_size=side)
    last = f"encoder.layers.{SIGLIP['num_hidden_layers'] - 1}."
    state = {n: t for n, t in llava_state(theirs).items() if last not in n and ".head." not in n}
    named = {"mm_vision_tower": write_tower(tmp_path / "tower", theirs)} if published else {}
    model = load_pretrained_model(write(tmp_path, state, **named), device="cpu")[1]
    pixels = PIXELS[..., :side, :side]
    expected = theirs(LONG, pixel_values=pixels, attention_mask=torch.ones_like(LONG)).logits
    torch.testing.assert_close(model(PROMPT, images=pixels).logits, expected, atol=1e-4, rtol=0)
    model.save_pretrained(tmp_path / "again")
    assert not [name for name in load_file(tmp_path / "again" / "model.safetensors") if ".head." in name]


@pytest.mark.parametrize("flag", ["", "--mm_vision_select_layer -2"], ids=["", "as LLaVA-NeXT's commands"])
@torch.no_grad()
def test_training_reads_such_a_tower_at_its_end_too(tmp_path, flag):
    side = CELLS * 14
    theirs = make_oracle(image_size=side)
    last = f"encoder.layers.{SIGLIP['num_hidden_layers'] - 1}."
    state = {n: t for n, t in llava_state(theirs).items() if last not in n and ".head." not in n}
    needed = f"--model_name_or_path {write(tmp_path, state)} --output_dir out --data_path data.json --use_cpu True"
    model = assemble(parse_arguments(f"{needed} --report_to none --image_aspect_ratio pad {flag}".split()))[1].eval()
    pixels = PIXELS[..., :side, :side]
    expected = theirs(LONG, pixel_values=pixels, attention_mask=torch.ones_like(LONG)).logits
    torch.testing.assert_close(model(PROMPT, images=pixels).logits, expected, atol=1e-4, rtol=0)


SO400M = {
    "embeddings.patch_embedding.weight": (1152, 3, 14, 14),
    "embeddings.patch_embedding.bias": (1152,),
    "embeddings.position_embedding.weight": (729, 1152),
    **{f"encoder.layers.{i}.mlp.fc1.weight": (4304, 1152) for i in range(26)},
}


def test_so400m_is_recognised_by_its_shapes():
    config = infer_vision_config(SO400M)
    wanted = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26, "num_attention_heads": 16}
    assert {name: getattr(config, name) for name in wanted} == wanted
    assert (config.image_size, config.patch_size, config.vision_use_head) == (384, 14, False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"embeddings.patch_embedding.weight": None},
            "not a SigLIP vision model: it has no 'embeddings.patch_embedding",
        ),
        ({"embeddings.class_embedding": (1152,)}, r"729 positions of width 1152, with \[CLS\]: not a SigLIP"),
        ({"embeddings.position_embedding.weight": (730, 1152)}, r"730 positions .*without \[CLS\]: not a SigLIP"),
        ({"embeddings.patch_embedding.bias": None}, r"729 positions .*without \[CLS\]: not a CLIP"),
        (
            {"embeddings.patch_embedding.bias": None, "embeddings.class_embedding": (1152,)},
            r"729 positions .*with \[CLS\]: not a CLIP .*set mm_vision_config in config.json",
        ),
    ],
)
def test_a_tower_that_its_shapes_do_not_show_is_refused(changes, words):
    shapes = {**SO400M, **changes}
    with pytest.raises(ValueError, match=words):
        infer_vision_config({name: shape for name, shape in shapes.items() if shape is not None})


def test_cls_patch_is_refused_since_there_is_none(theirs, tmp_path):
    folder = write(tmp_path, llava_state(theirs), mm_vision_config=SIGLIP, mm_vision_select_feature="cls_patch")
    for load in (load_pretrained_model, load_empty_tower):
        with pytest.raises(ValueError, match=r"config\.json: mm_vision_select_feature .*SigLIP has no \[CLS\]"):
            load(folder)
