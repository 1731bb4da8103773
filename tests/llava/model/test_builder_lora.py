"""LoRA checkpoints, written here by hand as LLaVA's training and peft write them: what they adapt, and nothing else.

The oracle is transformers' model with W + scale * B @ A computed here.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraModel
from safetensors.torch import save_file
from torch import Tensor

from llava.model.builder import load_pretrained_model
from tests.llava.checkpoints import (
    llava_state,
    load_llava_state,
    logits,
    make_llava_checkpoint,
    oracle_logits,
    projector_state,
    transformers_model,
    write_config,
    write_language_model,
    write_tower,
)

NAMES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""target_modules of LLaVA's own LoRA checkpoints; the first three fit the tower's layers too."""

LANGUAGE = [
    f"model.layers.{i}.{block}.{name}"
    for i in range(2)
    for block, names in (("self_attn", NAMES[:4]), ("mlp", NAMES[4:]))
    for name in names
]
TOWER = [
    f"model.vision_tower.vision_tower.vision_model.encoder.layers.{i}.self_attn.{name}"
    for i in range(4)
    for name in NAMES[:3]
]
UNIFORM = {"alpha": 0.0, "max_tokens": None}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return make_llava_checkpoint(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return llava_state(transformers_model())


class Lora:
    """The files of an adapter, and the weights that they stand for."""

    def __init__(self, weights: dict[str, Tensor], layers: list[str], rank: int = 4, seed: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.matrices = {}
        for layer in layers:
            out, width = weights[f"{layer}.weight"].shape
            self.matrices[layer] = (
                torch.randn(rank, width, generator=generator) * 0.2,
                torch.randn(out, rank, generator=generator) * 0.2,
            )

    def tensors(self) -> dict[str, Tensor]:
        named = {}
        for layer, (first, second) in self.matrices.items():
            named[f"base_model.model.{layer}.lora_A.weight"] = first
            named[f"base_model.model.{layer}.lora_B.weight"] = second
        return named

    def write(self, folder: Path, extra: dict[str, Tensor] | None = None, **config) -> Path:
        write_config(folder, mm_vision_tower=config.pop("tower", "openai/clip-vit-large-patch14-336"))
        save_file({**self.tensors(), **(extra or {})}, folder / "adapter_model.safetensors", {"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps(adapter_config(**config)))
        return folder

    def deltas(self) -> dict[str, Tensor]:
        return {f"{layer}.weight": second @ first for layer, (first, second) in self.matrices.items()}


def adapter_config(**changes) -> dict:
    """As peft wrote it for LLaVA-1.5's LoRA checkpoints."""
    return {
        "auto_mapping": None,
        "base_model_name_or_path": "lmsys/vicuna-7b-v1.5",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": 8,
        "lora_dropout": 0.05,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": 4,
        "revision": None,
        "target_modules": NAMES,
        "task_type": "CAUSAL_LM",
        **changes,
    }


def expect(weights: dict[str, Tensor], changed: dict[str, Tensor]) -> Tensor:
    """The logits of transformers' model with these weights in the place of its own."""
    assert changed
    model = transformers_model()
    load_llava_state(model, {**weights, **changed})
    return oracle_logits(model)


def load(folder: Path, base: Path, **options):
    """Loads without a word from peft; a missing key would be one."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return load_pretrained_model(str(folder), str(base), device="cpu", **options)[1]


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("base", ["language model", "whole LLaVA"])
def test_an_ordinary_lora_changes_the_language_model_alone(tmp_path, capfd, monkeypatch, weights, whole, base):
    """On a Vicuna its projector comes from non_lora_trainables.bin, and its tower from where the config names it."""
    adapted, merge = [], LoraModel.merge_and_unload

    def spy(self):
        adapted.extend(
            name.removesuffix(".lora_A") for name, _ in self.model.named_modules() if name.endswith("lora_A")
        )
        return merge(self)

    monkeypatch.setattr(LoraModel, "merge_and_unload", spy)
    lora = Lora(weights, LANGUAGE)
    oracle = transformers_model()
    folder = lora.write(tmp_path / "lora", tower=str(write_tower(tmp_path / "clip", oracle)))
    if base == "language model":
        under = write_language_model(tmp_path / "vicuna", oracle)
        extra = {f"base_model.model.{name}": tensor for name, tensor in projector_state(oracle).items()}
        torch.save(extra, folder / "non_lora_trainables.bin")
    else:
        under = whole
        torch.save({}, folder / "non_lora_trainables.bin")
    model = load(folder, under)
    wanted = expect(weights, {name: weights[name] + 2 * delta for name, delta in lora.deltas().items()})
    assert_close(logits(model), wanted)
    assert sorted(adapted) == sorted(LANGUAGE)
    error = capfd.readouterr().err
    assert "MISSING" not in error and "REPORT" not in error and "missing" not in error


@pytest.mark.parametrize(
    ("targets", "flag"),
    [
        (NAMES, UNIFORM),
        (rf".*({'|'.join(NAMES)})", None),
        (r".*vision_tower\.vision_tower\.vision_model\..*(q|k|v)_proj|model\.layers\..*_proj", UNIFORM),
    ],
    ids=["list", "regex", "regex that names the tower"],
)
def test_a_lora_of_the_towers_layers_reaches_them(tmp_path, weights, whole, targets, flag):
    lora = Lora(weights, [*LANGUAGE, *TOWER])
    model = load(lora.write(tmp_path, target_modules=targets), whole, qlip=flag)
    wanted = expect(weights, {name: weights[name] + 2 * delta for name, delta in lora.deltas().items()})
    assert_close(logits(model), wanted)
    name = "model.vision_tower.vision_tower.encoder.layers.0.self_attn.q_proj.weight"
    theirs = f"{TOWER[0]}.weight"
    torch.testing.assert_close(model.state_dict()[name], weights[theirs] + 2 * lora.deltas()[theirs])


def test_scales_are_pefts(tmp_path, weights, whole):
    """rsLoRA: alpha / sqrt(r); patterns give layers a rank and an alpha of their own, by LLaVA's names."""
    special = TOWER[0]
    lora = Lora(weights, [*LANGUAGE, *TOWER])
    lora.matrices |= Lora(weights, [special], rank=2, seed=2).matrices
    pattern = special.removeprefix("model.").replace(".", r"\.")
    folder = lora.write(tmp_path, use_rslora=True, rank_pattern={pattern: 2}, alpha_pattern={pattern: 3})
    changed = {name: weights[name] + 8 / 4**0.5 * delta for name, delta in lora.deltas().items()}
    changed[f"{special}.weight"] = weights[f"{special}.weight"] + 3 / 2**0.5 * lora.deltas()[f"{special}.weight"]
    assert_close(logits(load(folder, whole)), expect(weights, changed))


def test_a_weight_decomposed_lora_is_pefts(tmp_path, weights, whole):
    """DoRA: the merged rows have the learnt lengths."""
    lora = Lora(weights, LANGUAGE)
    lengths, changed = {}, {}
    for number, (name, delta) in enumerate(lora.deltas().items()):
        merged = weights[name] + 2 * delta
        length = torch.linspace(1, 2, len(merged)) + number / 10
        lengths[f"base_model.model.{name.removesuffix('.weight')}.lora_magnitude_vector"] = length
        changed[name] = length[:, None] * merged / merged.norm(dim=1, keepdim=True)
    assert_close(logits(load(lora.write(tmp_path, lengths, use_dora=True), whole)), expect(weights, changed))
    lora.write(tmp_path / "without", use_dora=True)
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors: .*missing adapter keys.*magnitude"):
        load(tmp_path / "without", whole)


def test_layers_that_were_trained_whole_are_taken_whole(tmp_path, weights, whole):
    """modules_to_save, which peft saves in the adapter's file under the layers' own names."""
    lora = Lora(weights, LANGUAGE)
    saved = {name: weights[name] + 0.3 for name in ("lm_head.weight", *projector_state(transformers_model()))}
    extra = {f"base_model.model.{name}": tensor for name, tensor in saved.items()}
    folder = lora.write(tmp_path, extra, modules_to_save=["lm_head", "mm_projector"])
    changed = saved | {name: weights[name] + 2 * delta for name, delta in lora.deltas().items()}
    assert_close(logits(load(folder, whole)), expect(weights, changed))


def test_trained_biases_are_taken_with_the_adapter(tmp_path, weights, whole):
    """bias="all" of peft over the whole model: of the projector only the biases are in the adapter's file."""
    lora = Lora(weights, LANGUAGE)
    saved = {name: weights[name] + 0.3 for name in projector_state(transformers_model()) if name.endswith(".bias")}
    folder = lora.write(tmp_path, {f"base_model.model.{name}": tensor for name, tensor in saved.items()}, bias="all")
    changed = saved | {name: weights[name] + 2 * delta for name, delta in lora.deltas().items()}
    assert_close(logits(load(folder, whole)), expect(weights, changed))


def test_an_adapter_in_a_bin_file_is_read(tmp_path, weights, whole):
    lora = Lora(weights, LANGUAGE)
    folder = lora.write(tmp_path)
    (folder / "adapter_model.safetensors").unlink()
    torch.save(lora.tensors(), folder / "adapter_model.bin")
    wanted = expect(weights, {name: weights[name] + 2 * delta for name, delta in lora.deltas().items()})
    assert_close(logits(load(folder, whole)), wanted)


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.clear(), r"holds no LoRA weights"),
        (lambda t: t.pop(FIRST + "B.weight"), r"lacks lora_B of the layer 'model\.layers\.0\.self_attn\.q_proj'"),
        (
            lambda t: (t.pop(FIRST + "A.weight"), t.pop(FIRST + "B.weight")),
            r"lacks the matrices of 1 layers that adapter_config\.json targets, .*'model\.layers\.0\.self_attn\.q",
        ),
        (
            lambda t: t.update({FIRST.replace("layers.0", "layers.7") + "A.weight": torch.zeros(4, 64)}),
            r"adapts the layer 'model\.layers\.7\.self_attn\.q_proj', which the model does not have",
        ),
        (lambda t: t.update({FIRST + "A.weight": torch.zeros(3, 64)}), r"but adapter_config\.json gives it rank 4"),
        (lambda t: t.update({FIRST + "A.weight": torch.zeros(4, 32)}), r"the model's layer is \(64, 64\)"),
        (
            lambda t: t.update({FIRST + "A.default.weight": torch.zeros(4, 64)}),
            r"calls a matrix 'base_model\..*\.lora_A\.default\.weight'; peft's own files begin with 'base_model\.",
        ),
    ],
)
def test_an_incomplete_adapter_is_refused(tmp_path, weights, whole, change, message):
    folder, tensors = Lora(weights, LANGUAGE).write(tmp_path), Lora(weights, LANGUAGE).tensors()
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors.*" + message):
        load(folder, whole)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("adapter_config.json", b"{", r"adapter_config\.json is not valid JSON"),
        ("adapter_config.json", b"[]", r"adapter_config\.json holds no JSON object"),
        (
            "adapter_config.json",
            b'{"peft_type": "IA3"}',
            r"adapter_config\.json: peft_type is 'IA3'; allowed is 'LORA'",
        ),
        ("adapter_model.safetensors", b"\0" * 20, r"adapter_model\.safetensors is damaged or cut short \(20 bytes\)"),
        ("non_lora_trainables.bin", b"PK", r"non_lora_trainables\.bin is damaged"),
    ],
)
def test_damaged_files_are_named(tmp_path, weights, whole, file, content, message):
    folder = Lora(weights, LANGUAGE).write(tmp_path)
    (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load(folder, whole)


def test_an_adapter_without_its_files_is_refused(tmp_path, weights, whole):
    folder = Lora(weights, LANGUAGE).write(tmp_path)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json but no weights: expected adapter_model\.safe"):
        load(folder, whole)
    (folder / "config.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no config\.json.* a LoRA checkpoint of LLaVA has one beside adapter_"
    ):
        load(folder, whole)
