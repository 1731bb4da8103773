"""make_delta and apply_delta by LLaVA's flags, on files as users have them."""

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
from tests.llava.checkpoints import (
    IMAGE_TOKEN,
    TEXT,
    llava_config,
    llava_state,
    transformers_model,
    write_tokenizer,
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
    assert "is not empty; name another folder, or empty it" in capsys.readouterr().err
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text(json.dumps(llava_config()))
    assert consolidate.main(["--src", str(tmp_path / "bare"), "--dst", str(tmp_path / "out")]) == 2
    assert "holds no weights" in capsys.readouterr().err


@pytest.mark.parametrize("quantised", ["base", "target"])
def test_quantised_weights_are_not_computed_with(base, target, tmp_path, capsys, quantised):
    """The codes of 8 bits have the shapes of weights."""
    folders = {"base": base[0], "target": target}
    folders[quantised] = Path(shutil.copytree(folders[quantised], tmp_path / quantised))
    config = json.loads((folders[quantised] / "config.json").read_text())
    config["quantization_config"] = {"load_in_8bit": True}
    (folders[quantised] / "config.json").write_text(json.dumps(config))
    flags = {"--base-model-path": folders["base"], "--target-model-path": folders["target"]}
    assert make_delta.main(as_argv({**flags, "--delta-path": tmp_path / "delta"})) == 2
    assert f"{folders[quantised]} is quantised" in capsys.readouterr().err
    flags = {"--base-model-path": folders["base"], "--delta-path": folders["target"]}
    assert apply_delta.main(as_argv({**flags, "--target-model-path": tmp_path / "again"})) == 2
    assert f"{folders[quantised]} is quantised" in capsys.readouterr().err


def write_tied(folder: Path, state: dict[str, Tensor], as_bin: bool) -> Path:
    """As transformers 4 wrote .bin files, with one memory under two names, or once."""
    folder.mkdir(parents=True)
    config = llava_config() if any("mm_projector" in name for name in state) else {"model_type": "llama", **TEXT}
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    state = {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}
    if as_bin:
        torch.save({**state, "lm_head.weight": state["model.embed_tokens.weight"]}, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("target_as_bin", [False, True])
@pytest.mark.parametrize("base_as_bin", [False, True])
def test_tied_embeddings_are_the_output_layer_whether_they_are_stored_once_or_twice(
    oracle, tmp_path, target_as_bin, base_as_bin
):
    wanted, below = llava_state(oracle), steps(llava_state(transformers_model(seed=1)))
    target = write_tied(tmp_path / "target", wanted, target_as_bin)
    text = {name: tensor for name, tensor in below.items() if "mm_projector" not in name and "vision" not in name}
    base = write_tied(tmp_path / "base", text, base_as_bin)
    flags = {"--base-model-path": base, "--delta-path": tmp_path / "delta"}
    assert make_delta.main(as_argv({**flags, "--target-model-path": target})) == 0
    assert apply_delta.main(as_argv({**flags, "--target-model-path": tmp_path / "again"})) == 0
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert ("lm_head.weight" in again) == target_as_bin
    wanted = {**wanted, "lm_head.weight": wanted["model.embed_tokens.weight"]}
    assert again and all(torch.equal(tensor, wanted[name]) for name, tensor in again.items())


def test_a_delta_that_lacks_one_of_its_bases_weights_is_refused(delta, base, tmp_path, capsys):
    partial = Path(shutil.copytree(delta, tmp_path / "partial"))
    state = load_file(partial / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, partial / "model.safetensors", {"format": "pt"})
    flags = {"--base-model-path": base[0], "--delta-path": partial, "--target-model-path": tmp_path / "again"}
    assert apply_delta.main(as_argv(flags)) == 2
    assert f"{partial} lacks 'model.layers.1.mlp.up_proj.weight'" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_a_template_is_written_down_beside_weights_of_several_dtypes(base, target, tmp_path):
    named = Path(shutil.copytree(target, tmp_path / "llava-llama-2-x"))
    state = load_file(named / "model.safetensors")
    state = {name: tensor if "norm" in name else tensor.half() for name, tensor in state.items()}
    save_file(state, named / "model.safetensors", {"format": "pt"})
    flags = {"--base-model-path": base[0], "--target-model-path": named, "--delta-path": tmp_path / "delta"}
    assert make_delta.main(as_argv(flags)) == 0
    assert json.loads((tmp_path / "delta" / "config.json").read_text())["conv_mode"] == "llava_llama_2"
