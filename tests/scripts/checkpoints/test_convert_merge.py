"""scripts.convert_checkpoint joins what a checkpoint in LLaVA's format lacks: its tower, its language model."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, LlamaForCausalLM, LlavaForConditionalGeneration

from llava.model.multimodal_encoder.pretrained import default_image_processor
from scripts.checkpoints.formats import convert
from scripts.convert_checkpoint import main
from tests.llava.checkpoints import (
    llava_config,
    llava_state,
    make_llava_checkpoint,
    transformers_model,
    write_tokenizer,
)


def test_a_tower_that_lies_elsewhere_is_merged(tmp_path):
    oracle = transformers_model()
    oracle.model.vision_tower.save_pretrained(tmp_path / "tower")
    processor = default_image_processor(oracle.config.vision_config)
    processor.image_mean = [0.5, 0.4, 0.3]
    processor.save_pretrained(tmp_path / "tower")
    source = make_llava_checkpoint(tmp_path / "source", mm_vision_tower=str(tmp_path / "tower"))
    state = {name: tensor for name, tensor in load_file(source / "model.safetensors").items() if "tower" not in name}
    save_file(state, source / "model.safetensors", {"format": "pt"})
    assert convert(str(source), tmp_path / "out") == "transformers"
    merged = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out").state_dict()
    for name, tensor in oracle.state_dict().items():
        assert torch.equal(merged[name][: len(tensor)], tensor)
    saved = AutoProcessor.from_pretrained(tmp_path / "out", backend="pil").image_processor
    assert list(saved.image_mean) == processor.image_mean


def test_a_projector_is_merged_with_its_language_model(tmp_path):
    oracle = transformers_model()
    llama = LlamaForCausalLM(oracle.config.text_config)
    llama.model.load_state_dict(oracle.model.language_model.state_dict())
    llama.lm_head.load_state_dict(oracle.lm_head.state_dict())
    llama.save_pretrained(tmp_path / "base")
    write_tokenizer(tmp_path / "base")
    oracle.model.vision_tower.save_pretrained(tmp_path / "tower")
    default_image_processor(oracle.config.vision_config).save_pretrained(tmp_path / "tower")
    projector = tmp_path / "projector"
    projector.mkdir()
    config = llava_config(mm_vision_tower=str(tmp_path / "tower"), qlip=True)
    (projector / "config.json").write_text(json.dumps(config))
    names = {name: tensor for name, tensor in llava_state(oracle).items() if "mm_projector" in name}
    torch.save(names, projector / "mm_projector.bin")
    flags = ["--model-path", str(projector), "--model-base", str(tmp_path / "base"), "--out", str(tmp_path / "out")]
    assert main(flags) == 0
    merged = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert merged.config.qlip is True
    for name, tensor in oracle.state_dict().items():
        assert torch.equal(merged.state_dict()[name][: len(tensor)], tensor)
    assert AutoProcessor.from_pretrained(tmp_path / "out", backend="pil").image_token == "<image>"
