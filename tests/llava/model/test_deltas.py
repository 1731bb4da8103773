"""make_delta, apply_delta and consolidate by LLaVA's flags, on files as users have them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model import apply_delta, consolidate, make_delta
from llava.model.builder import load_pretrained_model
from llava.model.utils import auto_upgrade
from qlip.mlp import CoordinateMLP
from tests.llava.checkpoints import (
    IMAGE_TOKEN,
    TEXT,
    llava_config,
    llava_state,
    make_llava_checkpoint,
    transformers_model,
    write_tokenizer,
    write_tower,
)

PIXELS = torch.randn(1, 3, 112, 112, generator=torch.Generator().manual_seed(0))
NEW_ROWS = 2  # of <im_start> and <im_end>, which the base lacks


def steps(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """In steps of 1/64, so that sums and differences are exact."""
    return {
        name: (tensor * 64).round() / 64 if tensor.is_floating_point() else tensor for name, tensor in state.items()
    }


@pytest.fixture(scope="module")
def oracle():
    model = transformers_model()
    model.load_state_dict(steps(model.state_dict()))
    return model


@pytest.fixture(scope="module")
def target(tmp_path_factory, oracle) -> Path:
    folder = tmp_path_factory.mktemp("target")
    save_file(llava_state(oracle), folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(llava_config()))
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> tuple[Path, dict[str, Tensor]]:
    """A Llama with other weights and a smaller vocabulary, in the .bin of its time, with a buffer of its time."""
    folder = tmp_path_factory.mktemp("base")
    state = steps(llava_state(transformers_model(seed=1)))
    state = {name: tensor for name, tensor in state.items() if "mm_projector" not in name and "vision" not in name}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = state[name][:-NEW_ROWS].clone()
    torch.save({**state, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}, folder / "pytorch_model.bin")
    vocabulary = TEXT["vocab_size"] - NEW_ROWS
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **TEXT, "vocab_size": vocabulary}))
    return folder, state


@pytest.fixture(scope="module")
def delta(tmp_path_factory, base, target) -> Path:
    folder = tmp_path_factory.mktemp("delta") / "delta"
    flags = {"--base-model-path": base[0], "--target-model-path": target, "--delta-path": folder}
    assert make_delta.main(as_argv(flags)) == 0
    return folder


def as_argv(flags: dict[str, Any]) -> list[str]:
    return [str(part) for pair in flags.items() for part in pair]


def test_a_delta_is_the_difference_and_whatever_the_base_lacks(delta, base, target, oracle):
    found, wanted = load_file(delta / "model.safetensors"), llava_state(oracle)
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        expected = wanted[name].clone()
        if (below := base[1].get(name)) is not None:
            expected[: len(below)] -= below
        assert torch.equal(tensor, expected), name
    assert (delta / "tokenizer.model").read_bytes() == (target / "tokenizer.model").read_bytes()


@torch.no_grad()
def test_base_and_delta_give_the_model_again(delta, base, oracle, tmp_path):
    flags = {"--base-model-path": base[0], "--target-model-path": tmp_path / "again", "--delta-path": delta}
    assert apply_delta.main(as_argv(flags)) == 0
    model = load_pretrained_model(tmp_path / "again", device="cpu")[1]
    long = torch.tensor([[1, 20, *[IMAGE_TOKEN] * 64, 30]])
    expected = oracle(long, pixel_values=PIXELS, attention_mask=torch.ones_like(long)).logits
    got = model(torch.tensor([[1, 20, IMAGE_TOKEN_INDEX, 30]]), images=PIXELS).logits
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


def test_a_delta_can_be_uploaded(base, target, tmp_path, monkeypatch):
    calls: list[Any] = []

    class Hub:
        def create_repo(self, repo_id: str, exist_ok: bool) -> None:
            calls.append((repo_id, exist_ok))

        def upload_folder(self, repo_id: str, folder_path: Path) -> None:
            calls.append((repo_id, sorted(file.name for file in Path(folder_path).iterdir())))

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    flags = {"--base-model-path": base[0], "--target-model-path": target, "--delta-path": tmp_path / "delta"}
    assert make_delta.main([*as_argv(flags), "--hub-repo-id", "me/delta"]) == 0
    files = ["config.json", "model.safetensors", "tokenizer.model", "tokenizer_config.json"]
    assert calls == [("me/delta", True), ("me/delta", files)]


def test_what_does_not_belong_together_is_one_line(base, target, tmp_path, capsys):
    swapped = {"--base-model-path": target, "--target-model-path": base[0], "--delta-path": tmp_path / "delta"}
    assert make_delta.main(as_argv(swapped)) == 2
    assert "model.embed_tokens.weight is (382, 64)" in (line := capsys.readouterr().err)
    assert line.count("\n") == 1
    full = {"--base-model-path": base[0], "--target-model-path": target, "--delta-path": base[0]}
    assert make_delta.main(as_argv(full)) == 2
    assert "not an empty folder; name a new one" in capsys.readouterr().err
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text(json.dumps(llava_config()))
    assert consolidate.main(["--src", str(tmp_path / "bare"), "--dst", str(tmp_path / "out")]) == 2
    assert "holds no weights" in capsys.readouterr().err


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
