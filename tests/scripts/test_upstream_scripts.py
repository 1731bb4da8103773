"""LLaVA's scripts on checkpoints, by its flags: a LoRA merged, a projector taken out; the oracle is transformers'."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, LlavaForConditionalGeneration

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.builder import load_pretrained_model
from llava.utils import demo_model_path
from scripts import extract_mm_projector, merge_lora_weights
from tests.llava.checkpoints import (
    IMAGE_TOKEN,
    llava_config,
    llava_state,
    make_llava_checkpoint,
    transformers_model,
    write_language_model,
    write_tower,
)
from tests.llava.next_checkpoints import make_next_checkpoint, next_model

PIXELS = torch.randn(1, 3, 112, 112, generator=torch.Generator().manual_seed(0))
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def oracle() -> LlavaForConditionalGeneration:
    return transformers_model()


def make_lora(folder: Path, base: Path) -> LlamaForCausalLM:
    """A LoRA of the query projections as LLaVA's training saves it, with the projector; its language model, merged."""
    model = load_pretrained_model(base, device="cpu")[1]
    llama = LlamaForCausalLM(model.config)
    llama.load_state_dict(
        {n: t for n, t in model.state_dict().items() if "mm_projector" not in n and "vision" not in n}
    )
    lora = get_peft_model(llama, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    lora.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(llava_config()))
    state = {n: t for n, t in llava_state(transformers_model()).items() if "mm_projector" in n}
    torch.save({f"base_model.model.{n}": t for n, t in state.items()}, folder / "non_lora_trainables.bin")
    return lora.merge_and_unload()


@torch.no_grad()
def test_a_merged_lora_is_a_checkpoint_of_its_own(tmp_path, oracle, capsys):
    base = make_llava_checkpoint(tmp_path / "base")
    merged = make_lora(tmp_path / "llava-lora", base)
    flags = ["--model-path", str(tmp_path / "llava-lora"), "--model-base", str(base)]
    assert merge_lora_weights.main([*flags, "--save-model-path", str(tmp_path / "out")]) == 0
    assert "LlavaLlamaForCausalLM" in capsys.readouterr().out
    assert merge_lora_weights.main([*flags, "--save-model-path", str(tmp_path / "out")]) == 2
    assert "is not empty; name another folder, or empty it" in capsys.readouterr().err
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "quantization_config": {"load_in_8bit": True}}))
    assert merge_lora_weights.main([*flags, "--save-model-path", str(tmp_path / "none")]) == 2
    assert f"{base} is quantised" in capsys.readouterr().err
    (base / "config.json").write_text(json.dumps(config))

    model = load_pretrained_model(tmp_path / "out", device="cpu")[1]
    oracle.model.language_model.load_state_dict(
        {name.removeprefix("model."): tensor for name, tensor in merged.state_dict().items() if "lm_head" not in name}
    )
    long = torch.tensor([[1, 20, *[IMAGE_TOKEN] * 64, 30]])
    expected = oracle(long, pixel_values=PIXELS, attention_mask=torch.ones_like(long)).logits
    got = model(torch.tensor([[1, 20, IMAGE_TOKEN_INDEX, 30]]), images=PIXELS).logits
    assert (
        torch.nn.functional.cosine_similarity(got.flatten(), expected.flatten(), dim=0) > 0.999
    )  # it is half precision
    assert (tmp_path / "out" / "tokenizer_config.json").is_file()


@pytest.mark.parametrize(("name", "template"), [("llava-v1.6-34b-lora", "chatml_direct"), ("llava-lora", None)])
def test_a_merged_lora_keeps_the_template_that_its_name_told(tmp_path, name, template):
    base = make_llava_checkpoint(tmp_path / "base")
    make_lora(tmp_path / name, base)
    flags = ["--model-path", str(tmp_path / name), "--model-base", str(base)]
    assert merge_lora_weights.main([*flags, "--save-model-path", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text()).get("conv_mode") == template


def test_a_merged_weight_that_float16_does_not_hold_is_named(tmp_path, capsys):
    base = make_llava_checkpoint(tmp_path / "base")
    make_lora(tmp_path / "llava-lora", base)
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"][3] = 70_000
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    flags = ["--model-path", str(tmp_path / "llava-lora"), "--model-base", str(base), "--save-model-path"]
    assert merge_lora_weights.main([*flags, str(tmp_path / "half")]) == 2
    assert "model.norm.weight is not finite in float16; give a --dtype" in capsys.readouterr().err
    assert not (tmp_path / "half").exists()
    assert merge_lora_weights.main([*flags, str(tmp_path / "out"), "--dtype", "bfloat16"]) == 0
    assert load_pretrained_model(tmp_path / "out", device="cpu")[1].model.norm.weight[3] == 70_144  # the nearest


@pytest.mark.parametrize("kind", ["llava", "transformers"])
def test_a_projector_is_taken_out_by_llavas_names(tmp_path, kind):
    model = transformers_model()
    folder = tmp_path / "model"
    if kind == "llava":
        make_llava_checkpoint(folder)
    else:
        model.save_pretrained(folder)
    out = tmp_path / "out" / "mm_projector.bin"
    assert extract_mm_projector.main(["--model-path", str(folder), "--output", str(out)]) == 0
    expected = {name: tensor for name, tensor in llava_state(model).items() if "mm_projector" in name}
    found = torch.load(out, weights_only=True)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_projector_is_taken_out_of_a_lora_too(tmp_path):
    make_lora(tmp_path / "llava-lora", make_llava_checkpoint(tmp_path / "base"))
    out = tmp_path / "mm_projector.bin"
    assert extract_mm_projector.main(["--model-path", str(tmp_path / "llava-lora"), "--output", str(out)]) == 0
    expected = {n: tensor for n, tensor in llava_state(transformers_model()).items() if "mm_projector" in n}
    found = torch.load(out, weights_only=True)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kind", ["llava", "transformers"])
def test_the_newline_of_tiles_goes_with_its_projector(tmp_path, kind):
    """And training on tiles reads it from there; without tiles it is not asked for."""
    model = next_model()
    if kind == "llava":
        make_next_checkpoint(tmp_path / "model")
    else:
        model.save_pretrained(tmp_path / "model")
    out = tmp_path / "mm_projector.bin"
    assert extract_mm_projector.main(["--model-path", str(tmp_path / "model"), "--output", str(out)]) == 0
    kept = ("mm_projector", "image_newline")
    expected = {name: tensor for name, tensor in llava_state(model).items() if any(part in name for part in kept)}
    found = torch.load(out, weights_only=True)
    assert "model.image_newline" in found and found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())

    trunk = load_pretrained_model(write_language_model(tmp_path / "vicuna", model), device="cpu")[1].get_model()
    parts = {"vision_tower": write_tower(tmp_path / "clip", model), "mm_projector_type": "mlp2x_gelu"}
    args = SimpleNamespace(**parts, mm_vision_select_layer=-2, pretrain_mm_mlp_adapter=out)
    trunk.initialize_vision_modules(args)
    assert not hasattr(trunk, "image_newline")
    trunk.initialize_vision_modules(SimpleNamespace(**vars(args), mm_patch_merge_type="spatial_unpad"))
    assert torch.equal(trunk.image_newline, expected["model.image_newline"])


def test_a_language_model_has_no_projector(tmp_path, capsys):
    base = make_llava_checkpoint(tmp_path / "llava")
    state = {
        n: t for n, t in load_file(base / "model.safetensors").items() if "projector" not in n and "vision" not in n
    }
    torch.save(state, base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    (base / "config.json").write_text(json.dumps(llava_config(mm_vision_tower=None)))
    assert extract_mm_projector.main(["--model-path", str(base), "--output", str(tmp_path / "p.bin")]) == 2
    assert "holds no model.mm_projector.*" in capsys.readouterr().err


@pytest.mark.parametrize(
    "script",
    ["convert_sqa_to_llava.py", "convert_mmvet_for_eval.py", "merge_lora_weights.py", "extract_mm_projector.py"],
)
def test_scripts_can_be_started_by_their_files_as_llavas_are(script):
    source = (ROOT / "scripts" / script).read_text(encoding="utf-8")
    assert "from scripts" not in source and "import scripts" not in source  # the folder is not a package then
    assert 'if __name__ == "__main__":' in source


def test_a_checkpoint_without_a_lora_is_not_merged(tmp_path, capsys):
    demo = str(demo_model_path())
    flags = ["--model-path", demo, "--model-base", demo, "--save-model-path", str(tmp_path / "out")]
    assert merge_lora_weights.main(flags) == 2
    assert f"--model-path {demo} has all weights: there is nothing to merge" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
