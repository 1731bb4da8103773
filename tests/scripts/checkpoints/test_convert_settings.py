"""Converted checkpoints keep LLaVA's settings that transformers' format has no place for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

from llava.mm_utils import process_images
from llava.model.builder import load_pretrained_model
from llava.model.loading.chat_template import choose_template
from scripts.checkpoints.formats import convert
from tests.llava.checkpoints import make_llava_checkpoint

NAMES = {"llava-v1.6-34b": "chatml_direct", "llava-v1.5-7b": "vicuna_v1"}


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(("name", "template"), NAMES.items())
def test_the_template_that_a_name_chose_is_kept_under_any_name(tmp_path, name, template):
    """As llava chooses it, both ways; transformers' chat template is that one's or none, never Vicuna's."""
    source = make_llava_checkpoint(tmp_path / name, conv_mode=None)
    assert choose_template(str(source), load_pretrained_model(source, device="cpu")[1].config) == template
    convert(str(source), tmp_path / "there")
    assert choose_template("there", load_pretrained_model(tmp_path / "there", device="cpu")[1].config) == template
    written = AutoProcessor.from_pretrained(tmp_path / "there", backend="pil").chat_template or ""
    assert ("USER" in written) == (template == "vicuna_v1")
    convert(str(tmp_path / "there"), tmp_path / "back")
    assert choose_template("back", load_pretrained_model(tmp_path / "back", device="cpu")[1].config) == template
    shutil.rmtree(tmp_path / "there" / "original")
    convert(str(tmp_path / "there"), tmp_path / "again")
    assert config_of(tmp_path / "again").get("conv_mode") == template


def test_a_checkpoint_of_transformers_may_name_its_template(tmp_path):
    convert(str(make_llava_checkpoint(tmp_path / "source")), tmp_path / "there")
    values = config_of(tmp_path / "there") | {"conv_mode": "llava_llama_3"}
    (tmp_path / "there" / "config.json").write_text(json.dumps(values))
    assert load_pretrained_model(tmp_path / "there", device="cpu")[1].config.conv_mode == "llava_llama_3"


@pytest.mark.parametrize("ratio", ["pad", "square", None])
def test_images_are_prepared_as_before(tmp_path, ratio):
    """By this package as by transformers' own processor."""
    source = make_llava_checkpoint(tmp_path / "source", image_aspect_ratio=ratio)
    picture = Image.effect_noise((200, 100), 90).convert("RGB")
    pixels = []
    convert(str(source), tmp_path / "there")
    for folder in (source, tmp_path / "there"):
        _, model, processor, _ = load_pretrained_model(folder, device="cpu", qlip=False)
        pixels.append(process_images([picture], processor, model.config))
    assert torch.equal(*pixels)
    theirs = AutoProcessor.from_pretrained(tmp_path / "there", backend="pil").image_processor
    torch.testing.assert_close(theirs(picture, return_tensors="pt").pixel_values, pixels[0], atol=1e-5, rtol=0)


def test_settings_that_were_changed_since_come_back_changed(tmp_path):
    convert(str(make_llava_checkpoint(tmp_path / "source", image_aspect_ratio="pad")), tmp_path / "there")
    changes = {"conv_mode": "llava_llama_3", "image_aspect_ratio": "square", "qlip": {"alpha": 0.5}}
    (tmp_path / "there" / "config.json").write_text(json.dumps(config_of(tmp_path / "there") | changes))
    convert(str(tmp_path / "there"), tmp_path / "back")
    assert {name: config_of(tmp_path / "back")[name] for name in changes} == changes


def test_tokens_around_an_image_are_kept(tmp_path):
    source = make_llava_checkpoint(tmp_path / "source", mm_use_im_start_end=True)
    convert(str(source), tmp_path / "there")
    assert load_pretrained_model(tmp_path / "there", device="cpu")[1].config.mm_use_im_start_end is True


def with_buffer(folder: Path) -> Path:
    """As checkpoints of LLaVA's first versions have them."""
    state = load_file(folder / "model.safetensors")
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_buffers_that_training_did_not_save_again_are_left_out(tmp_path):
    source = with_buffer(make_llava_checkpoint(tmp_path / "source"))
    convert(str(source), tmp_path / "there")
    LlavaForConditionalGeneration.from_pretrained(tmp_path / "there").save_pretrained(tmp_path / "there")
    convert(str(tmp_path / "there"), tmp_path / "back")
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "back"))
    assert before.keys() - after.keys() == {"model.layers.0.self_attn.rotary_emb.inv_freq"}
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())


def test_tokens_that_were_added_since_are_not_cut_off(tmp_path):
    convert(str(make_llava_checkpoint(tmp_path / "source")), tmp_path / "there")
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "there")
    rows = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(rows + 40)
    model.save_pretrained(tmp_path / "there")
    with pytest.raises(ValueError, match=f"has {rows + 40} rows of vocabulary and had {rows} when it was converted"):
        convert(str(tmp_path / "there"), tmp_path / "back")
    shutil.rmtree(tmp_path / "there" / "original")
    assert convert(str(tmp_path / "there"), tmp_path / "back") == "llava"
    assert config_of(tmp_path / "back")["vocab_size"] == rows + 40
