"""scripts.convert_checkpoint on other language models than Llama: their type, windows and biases are kept both ways."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import GenerationConfig, LlavaForConditionalGeneration

from llava.model.builder import load_pretrained_model
from scripts.checkpoints.formats import convert
from tests.llava.checkpoints import IMAGE_TOKEN, VISION
from tests.llava.model.language_models import LONG, PIXELS, PROMPT, make_oracle, write_checkpoint


def test_mpt_is_refused(tmp_path):
    source = write_checkpoint(tmp_path / "llava", "mpt", make_oracle("mpt"), mm_vision_config=VISION)
    with pytest.raises(ValueError, match="the language model is MPT, whose embeddings transformers' Llava can't tie"):
        convert(str(source), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [("mistral, window", "LlavaMistralForCausalLM"), ("qwen2, window", "LlavaQwenForCausalLM")],
)
@torch.no_grad()
def test_both_formats_hold_the_same_model(tmp_path, kind, architecture):
    oracle = make_oracle(kind)
    llava = write_checkpoint(tmp_path / "llava", kind, oracle, mm_vision_config=VISION)
    assert convert(str(llava), tmp_path / "theirs") == "transformers"
    theirs = LlavaForConditionalGeneration.from_pretrained(tmp_path / "theirs").eval()
    image = theirs.config.image_token_index
    long = torch.tensor([[image if token == IMAGE_TOKEN else token for token in LONG]])
    ours = load_pretrained_model(llava, device="cpu")[1](torch.tensor([PROMPT]), images=PIXELS).logits
    logits = theirs(input_ids=long, pixel_values=PIXELS, attention_mask=torch.ones_like(long)).logits
    torch.testing.assert_close(logits[..., : ours.shape[-1]], ours, atol=1e-4, rtol=1e-5)
    assert convert(str(tmp_path / "theirs"), tmp_path / "back") == "llava"
    before, after = (load_file(folder / "model.safetensors") for folder in (llava, tmp_path / "back"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    oracle.save_pretrained(tmp_path / "saved")
    for file in tmp_path.joinpath("llava").glob("tokenizer*"):
        (tmp_path / "saved" / file.name).write_bytes(file.read_bytes())
    convert(str(tmp_path / "saved"), tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["architectures"] == [architecture]


@pytest.mark.parametrize(
    "settings",
    [{"bos_token_id": 1, "eos_token_id": 2, "temperature": 0.9, "top_p": 0.6}, {"eos_token_id": 2, "temperature": 0.2}],
)
def test_published_generation_settings_without_effect_are_no_obstacle(tmp_path, settings):
    """As Vicuna's, which has a temperature and does not sample; transformers refuses to save those."""
    source = write_checkpoint(tmp_path / "llava", "llama 3", make_oracle("llama 3"), mm_vision_config=VISION)
    (source / "generation_config.json").write_text(json.dumps(settings))
    convert(str(source), tmp_path / "theirs")
    found = GenerationConfig.from_pretrained(tmp_path / "theirs")
    assert (found.eos_token_id, found.temperature, found.top_p) == (2, None, None)


def test_all_tokens_that_end_an_answer_are_kept(tmp_path):
    """config.json names one of them; chats of Llama 3 end with another."""
    source = write_checkpoint(tmp_path / "llava", "llama 3", make_oracle("llama 3"), mm_vision_config=VISION)
    (source / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": [5, 6]}))
    convert(str(source), tmp_path / "theirs")
    assert json.loads((tmp_path / "theirs" / "generation_config.json").read_text())["eos_token_id"] == [5, 6]
