"""Training starts from a Mistral, Qwen2 or Llama 3 alone, as from a Vicuna: its class, template, LoRA, reloading."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from llava.conversation import conv_templates
from llava.model.builder import load_pretrained_model
from llava.model.loading.weights import MODELS
from llava.train.arguments import parse_arguments
from llava.train.assemble import assemble
from tests.llava.checkpoints import write_tokenizer, write_tower
from tests.llava.model.language_models import KINDS, LONG, PIXELS, PROMPT, TYPES, make_oracle

PROJECTOR = {"0": "linear_1", "2": "linear_2"}
BASES = {"mistral": "mistral_instruct", "qwen2": "qwen_1_5", "llama 3": "llava_llama_3", "mpt": "mpt"}
FLAGS = (
    "--output_dir {0}/out --data_path data.json --use_cpu True --report_to none --model_name_or_path {0}/base"
    " --vision_tower {0}/clip --mm_projector_type mlp2x_gelu --mm_vision_select_layer -2 --mm_use_im_patch_token False"
    " --version {1}"
)


@pytest.mark.parametrize("kind", BASES)
def test_a_language_model_alone_becomes_a_llava(tmp_path, kind):
    oracle = make_oracle(kind)
    text = AutoModelForCausalLM.from_config(oracle.config.get_text_config())
    text.base_model.load_state_dict(oracle.model.language_model.state_dict())
    text.lm_head.load_state_dict(oracle.lm_head.state_dict())
    text.save_pretrained(tmp_path / "base")
    write_tokenizer(tmp_path / "base")
    write_tower(tmp_path / "clip", oracle)
    flags = FLAGS.format(tmp_path, BASES[kind])
    tokenizer, model, template = assemble(parse_arguments(flags.split()))
    assert type(model) is MODELS[type(model.config)] and template == conv_templates[BASES[kind]]
    projector = oracle.model.multi_modal_projector.state_dict()
    names = {f"{ours}.{part}": f"{own}.{part}" for ours, own in PROJECTOR.items() for part in ("weight", "bias")}
    model.get_model().mm_projector.load_state_dict({ours: projector[own] for ours, own in names.items()})
    model.save_pretrained(tmp_path / "llava")
    tokenizer.save_pretrained(tmp_path / "llava")
    _, again, _, _ = load_pretrained_model(tmp_path / "llava", device="cpu")
    assert again.config.model_type == TYPES[KINDS[kind]["model_type"]]
    assert again.config.conv_mode == BASES[kind]
    long = torch.tensor([LONG])
    with torch.no_grad():
        expected = oracle(input_ids=long, pixel_values=PIXELS, attention_mask=torch.ones_like(long)).logits
        got = again(torch.tensor([PROMPT]), images=PIXELS).logits
    torch.testing.assert_close(got, expected, atol=1e-5 * expected.abs().max().item(), rtol=0)
    model.train()
    ids = torch.tensor([[1, 20, 30, 31, 32]])
    model(ids, labels=ids).loss.backward()
    assert all(weight.grad is not None for weight in model.model.layers.parameters())
    adapted = assemble(parse_arguments(f"{flags} --lora_enable True".split()))[1]
    assert sum("lora_A" in name for name, _ in adapted.named_parameters()) == 2 * (4 if kind == "mpt" else 7)
