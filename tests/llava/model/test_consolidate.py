"""consolidate by LLaVA's flags, on files as users have them, and the first versions' checkpoints that it renames."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava.model import consolidate
from llava.model.builder import load_pretrained_model
from llava.model.utils import auto_upgrade
from qlip.mlp import CoordinateMLP
from tests.llava.checkpoints import (
    TEXT,
    llava_config,
    llava_state,
    make_llava_checkpoint,
    transformers_model,
    write_tokenizer,
    write_tower,
)


@pytest.fixture(scope="module")
def oracle():
    return transformers_model()


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> Path:
    return make_llava_checkpoint(tmp_path_factory.mktemp("target"))


def test_consolidating_writes_half_precision(target, oracle, tmp_path):
    assert consolidate.main(["--src", str(target), "--dst", str(tmp_path / "half")]) == 0
    for name, tensor in load_file(tmp_path / "half" / "model.safetensors").items():
        assert torch.equal(tensor, llava_state(oracle)[name].half())
    load_pretrained_model(tmp_path / "half", device="cpu")


@pytest.mark.parametrize(
    ("name", "config", "template"),
    [
        ("llava-v1.6-34b", {}, "chatml_direct"),
        ("llava-llama-2-13b-chat", {}, "llava_llama_2"),
        ("llava-v1.6-34b", {"conv_mode": "llava_v0"}, "llava_v0"),
        ("llava-llama-2-13b-chat", {"mm_vision_tower": None}, None),
        ("llava-v1.5-7b", {}, None),
    ],
)
def test_a_template_that_the_name_alone_told_is_written_down(tmp_path, name, config, template):
    source = make_llava_checkpoint(tmp_path / name, **config)
    assert consolidate.main(["--src", str(source), "--dst", str(tmp_path / "half")]) == 0
    assert json.loads((tmp_path / "half" / "config.json").read_text()).get("conv_mode") == template


def test_quantised_weights_have_no_half_precision(target, tmp_path, capsys):
    source = tmp_path / "source"
    shutil.copytree(target, source)
    config = json.loads((source / "config.json").read_text()) | {"quantization_config": {"load_in_8bit": True}}
    (source / "config.json").write_text(json.dumps(config))
    assert consolidate.main(["--src", str(source), "--dst", str(tmp_path / "half")]) == 2
    assert "is quantised (quantization_config in config.json)" in capsys.readouterr().err


@pytest.mark.parametrize("tied", [True, False])
def test_weights_that_share_memory_are_each_written(oracle, tmp_path, tied):
    """Two names of one matrix, and parts of one buffer; of a matrix that is tied the embeddings are enough."""
    source = make_llava_checkpoint(tmp_path / "source")
    state = {name: tensor.half() for name, tensor in load_file(source / "model.safetensors").items()}
    (source / "model.safetensors").unlink()
    flat = torch.cat([state[f"model.layers.{layer}.mlp.up_proj.weight"] for layer in (0, 1)])
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    state |= {f"model.layers.{layer}.mlp.up_proj.weight": part for layer, part in enumerate(flat.chunk(2))}
    torch.save(state, source / "pytorch_model.bin")
    config = json.loads((source / "config.json").read_text()) | {"tie_word_embeddings": tied}
    (source / "config.json").write_text(json.dumps(config))
    assert consolidate.main(["--src", str(source), "--dst", str(tmp_path / "half")]) == 0
    found = load_file(tmp_path / "half" / "model.safetensors")
    assert found.keys() == state.keys() - ({"lm_head.weight"} if tied else set())
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.items())


def test_a_folder_that_cannot_be_written_whole_is_not_there(target, tmp_path, monkeypatch, capsys):
    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("llava.model.deltas.save_torch_state_dict", fail)
    assert consolidate.main(["--src", str(target), "--dst", str(tmp_path / "half")]) == 2
    assert "no space left" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_said_to_be_none(tmp_path, capsys):
    assert consolidate.main(["--src", "/no/such", "--dst", str(tmp_path / "half")]) == 2
    assert "there is no checkpoint folder '/no/such'" in capsys.readouterr().err


def test_a_prior_and_a_tower_beside_the_weights_come_along_and_the_dtype_is_the_weights(oracle, tmp_path):
    source = tmp_path / "source"
    write_tower(source / "tower", oracle)
    state = {name: tensor for name, tensor in llava_state(oracle).items() if "vision_tower" not in name}
    save_file(state, source / "model.safetensors", {"format": "pt"})
    CoordinateMLP(64, hidden=8, depth=1).save(source / "prior.safetensors")
    qlip = {"interpolation": "mlp", "mlp": "prior.safetensors"}
    config = llava_config(mm_vision_tower="tower", qlip=qlip, torch_dtype="bfloat16") | {"mm_vision_config": None}
    (source / "config.json").write_text(json.dumps(config))
    write_tokenizer(source)
    for other in ("checkpoint-1", "optimizer.pt"):
        (source / other).mkdir()
    assert consolidate.main(["--src", str(source), "--dst", str(tmp_path / "half")]) == 0
    kept = {
        "config.json",
        "model.safetensors",
        "prior.safetensors",
        "tower",
        "tokenizer.model",
        "tokenizer_config.json",
    }
    assert {file.name for file in (tmp_path / "half").iterdir()} == kept
    model = load_pretrained_model(tmp_path / "half", device="cpu", torch_dtype="auto")[1]
    assert model.dtype == torch.float16
    assert model.get_vision_tower().settings.interpolation == "mlp"


def test_old_bin_files_are_read_and_cut_ones_named(target, oracle, tmp_path, capsys):
    old, cut = Path(shutil.copytree(target, tmp_path / "old")), Path(shutil.copytree(target, tmp_path / "cut"))
    (old / "model.safetensors").unlink()
    torch.save(llava_state(oracle), old / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert consolidate.main(["--src", str(old), "--dst", str(tmp_path / "half")]) == 0
    whole = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert consolidate.main(["--src", str(cut), "--dst", str(tmp_path / "none")]) == 2
    assert "model.safetensors is damaged or cut short" in capsys.readouterr().err


def test_a_weight_beyond_half_precision_is_named(target, tmp_path, capsys):
    source = Path(shutil.copytree(target, tmp_path / "wide"))
    state = load_file(source / "model.safetensors")
    state["model.mm_projector.0.bias"][0] = 1e5
    save_file(state, source / "model.safetensors", {"format": "pt"})
    assert consolidate.main(["--src", str(source), "--dst", str(tmp_path / "half")]) == 2
    assert "model.mm_projector.0.bias holds values up to 100000; float16 holds up to 65504" in capsys.readouterr().err


@pytest.mark.parametrize("answer", ["y", "no", None])
def test_a_first_versions_checkpoint_is_renamed_if_the_user_agrees(tmp_path, monkeypatch, answer):
    old = llava_config(model_type="llama", architectures=["LlamaForCausalLM"], mm_projector_type="linear")
    (tmp_path / "config.json").write_text(json.dumps(old))

    def ask(prompt: str) -> str:
        if answer is None:
            raise EOFError
        return answer

    monkeypatch.setattr("builtins.input", ask)
    if answer == "y":
        auto_upgrade(str(tmp_path))
        old |= {"model_type": "llava_llama", "architectures": ["LlavaLlamaForCausalLM"]}
        monkeypatch.setattr("builtins.input", None)  # it is not asked again
        auto_upgrade(str(tmp_path))
    else:
        with pytest.raises(ValueError, match=r"config\.json is unchanged"):
            auto_upgrade(str(tmp_path))
    assert json.loads((tmp_path / "config.json").read_text()) == old


@pytest.mark.parametrize("config", [llava_config(), {"model_type": "llama", **TEXT}], ids=["llava", "a bare llama"])
def test_other_checkpoints_are_left_as_they_are(tmp_path, config, monkeypatch):
    monkeypatch.setattr("builtins.input", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    auto_upgrade(str(tmp_path))
    assert json.loads((tmp_path / "config.json").read_text()) == config
