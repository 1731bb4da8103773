"""Projector and LoRA checkpoints on their base model: every weight comes from a file, or loading is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import BitsAndBytesConfig, CLIPImageProcessorPil, LlamaForCausalLM

from llava.model.builder import load_empty_tower, load_pretrained_model
from llava.model.loading.weights import add_weights
from tests.llava.checkpoints import (
    PICTURE,
    PROMPT,
    VISION,
    VOCABULARY,
    llava_state,
    logits,
    make_llava_checkpoint,
    projector_state,
    write_config,
    write_language_model,
    write_tokenizer,
    write_tower,
)


@pytest.fixture(scope="module")
def vicuna(tmp_path_factory, oracle) -> Path:
    """The language model alone."""
    return write_language_model(tmp_path_factory.mktemp("vicuna"), oracle)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return make_llava_checkpoint(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory, oracle) -> str:
    return str(write_tower(tmp_path_factory.mktemp("clip"), oracle))


def write_projector(folder: Path, tensors: dict, **config) -> Path:
    write_config(folder, **config)
    torch.save(tensors, folder / "mm_projector.bin")
    return folder


def write_lora(folder: Path, extra: dict | None, **config) -> Path:
    """A LoRA of one layer whose B is zero: the model is that of the base and of `extra`."""
    write_config(folder, **config)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    save_file(
        {f"{name}A.weight": torch.ones(2, 64), f"{name}B.weight": torch.zeros(64, 2)},
        folder / "adapter_model.safetensors",
    )
    (folder / "adapter_config.json").write_text(
        json.dumps(
            {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "target_modules": r".*layers\.0\.self_attn\.q_proj"}
        )
    )
    if extra is not None:
        named = {f"base_model.model.{name}": tensor for name, tensor in extra.items()}
        torch.save(named, folder / "non_lora_trainables.bin")
    return folder


def load(folder: Path, base: Path):
    return load_pretrained_model(str(folder), str(base), device="cpu")[1]


def assert_same_view(empty, model) -> None:
    """A tower without weights prepares pictures as the loaded model's does."""
    tower = model.get_vision_tower()
    assert empty.image_processor.to_dict() == tower.image_processor.to_dict()
    assert (type(empty), empty.num_patches, empty.select_layer) == (type(tower), tower.num_patches, tower.select_layer)


@pytest.mark.parametrize("settings", [{}, {"mm_vision_config": VISION}], ids=["LLaVA's", "ours"])
def test_a_projector_loads_onto_its_language_model(tmp_path, oracle, expected, vicuna, clip, settings):
    """With the tower that its config.json names, whether or not it describes that tower as well."""
    folder = write_projector(tmp_path, projector_state(oracle), mm_vision_tower=clip, **settings)
    model = load(folder, vicuna)
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=0)
    assert_same_view(load_empty_tower(folder, vicuna), model)


@pytest.mark.parametrize("format", ["llava", "transformers"])
def test_a_projector_loads_onto_a_whole_llava_and_takes_its_tower(tmp_path, oracle, expected, whole, format):
    base = whole
    if format == "transformers":
        base = tmp_path / "base"
        oracle.save_pretrained(base)
        write_tokenizer(base)
    folder = write_projector(tmp_path / "projector", projector_state(oracle))
    model = load(folder, base)
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=0)
    assert_same_view(load_empty_tower(folder, base), model)


def test_pictures_are_prepared_as_the_base_prepares_them(tmp_path, oracle, whole):
    """Unless the checkpoint on top of it says otherwise."""
    base = Path(shutil.copytree(whole, tmp_path / "base"))
    folder = write_projector(tmp_path / "projector", projector_state(oracle))
    for place, mean in ((base, [0.5, 0.4, 0.3]), (folder, [0.1, 0.2, 0.3])):
        CLIPImageProcessorPil(size={"shortest_edge": 112}, crop_size=112, image_mean=mean).save_pretrained(place)
        model = load(folder, base)
        assert list(model.get_vision_tower().image_processor.image_mean) == mean
        assert_same_view(load_empty_tower(folder, base), model)


@pytest.mark.parametrize("extra", [None, {}], ids=["no file", "an empty file"])
def test_a_lora_without_a_projector_keeps_that_of_its_base(tmp_path, expected, whole, extra):
    model = load(write_lora(tmp_path, extra), whole)
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=0)


def test_a_tower_that_was_trained_comes_with_the_extra_weights(tmp_path, expected, oracle, vicuna):
    """Nothing else has a tower: the one that the config names is a hub id, which is not asked for."""
    state = llava_state(oracle)
    extra = {name: tensor for name, tensor in state.items() if "mm_projector" in name or "vision_tower" in name}
    model = load(write_lora(tmp_path, extra, mm_vision_config=VISION), vicuna)
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("extra", [None, {}], ids=["no file", "an empty file"])
def test_a_projector_that_is_nowhere_is_an_error(tmp_path, vicuna, clip, extra):
    with pytest.raises(ValueError, match=r"neither .*vicuna.* nor .* holds the projector, model\.mm_projector\.\*"):
        load(write_lora(tmp_path, extra, mm_vision_tower=clip), vicuna)


@pytest.mark.parametrize("base", ["vicuna", "whole"])
@pytest.mark.parametrize("write", [write_projector, write_lora], ids=lambda write: write.__name__)
def test_a_part_of_a_projector_is_an_error(tmp_path, request, oracle, clip, base, write):
    """On a whole LLaVA too, where it would be mixed with another projector's rest."""
    part = {name: tensor for name, tensor in projector_state(oracle).items() if ".0." in name}
    folder = write(tmp_path, part, mm_vision_tower=clip)
    with pytest.raises(ValueError, match=r"the projector, model\.mm_projector\.\*.*'model\.mm_projector\.2\.bias'"):
        load(folder, request.getfixturevalue(base))


def test_a_projectors_file_without_projector_is_an_error(tmp_path, whole):
    with pytest.raises(ValueError, match=r"mm_projector\.bin does not hold the projector, model\.mm_projector\.\*"):
        load(write_projector(tmp_path, {}), whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.unheard_of": torch.zeros(1)}, r"mm_projector\.bin holds 'model\.unheard_of', which the model has no"),
        (
            {"model.mm_projector.0.weight": torch.zeros(64, 32)},
            r"mm_projector\.bin: model\.mm_projector\.0\.weight is \(64, 32\), the model's \(64, 64\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_an_error(tmp_path, oracle, whole, change, message):
    with pytest.raises(ValueError, match=message):
        load(write_projector(tmp_path, {**projector_state(oracle), **change}), whole)


@pytest.mark.parametrize("flag", ["load_8bit", "load_4bit"])
def test_a_whole_weight_cannot_replace_a_quantised_one(tmp_path, oracle, whole, flag):
    name = "model.layers.0.self_attn.q_proj.weight"
    folder = write_lora(tmp_path, {name: llava_state(oracle)[name]})
    with pytest.raises(ValueError, match=rf"non_lora_trainables\.bin holds '{name}', which is quantised"):
        load_pretrained_model(str(folder), str(whole), device="cpu", **{flag: True})


@pytest.fixture(scope="module")
def eight_bit(tmp_path_factory, vicuna) -> Path:
    """The language model in 8 bits, as transformers saves it."""
    folder = tmp_path_factory.mktemp("eight")
    settings = BitsAndBytesConfig(load_in_8bit=True)
    LlamaForCausalLM.from_pretrained(vicuna, quantization_config=settings, device_map="cpu").save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def test_a_base_in_8_bits_is_read_as_it_was_quantised(tmp_path, oracle, vicuna, eight_bit, clip):
    folder = write_projector(tmp_path, projector_state(oracle), mm_vision_tower=clip)
    model = load_pretrained_model(str(folder), str(eight_bit), device="cpu")[1]
    expected = load_pretrained_model(str(folder), str(vicuna), device="cpu", load_8bit=True)[1]
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.int8
    torch.testing.assert_close(logits(model).float(), logits(expected).float(), atol=2e-2, rtol=0)
    with pytest.raises(ValueError, match="is quantised already"):
        load_pretrained_model(str(folder), str(eight_bit), device="cpu", load_4bit=True)


def test_codes_without_their_settings_are_not_read_as_weights(tmp_path, oracle, eight_bit, clip):
    base = tmp_path / "base"
    shutil.copytree(eight_bit, base)
    config = json.loads((base / "config.json").read_text())
    del config["quantization_config"]
    (base / "config.json").write_text(json.dumps(config))
    folder = write_projector(tmp_path / "projector", projector_state(oracle), mm_vision_tower=clip)
    with pytest.raises(ValueError, match="holds quantised weights .* has no quantization_config"):
        load(folder, base)


def test_a_whole_weight_cannot_replace_an_offloaded_one(oracle, whole):
    model = load_pretrained_model(str(whole), device="cpu")[1]
    model.lm_head.to("meta")
    with pytest.raises(ValueError, match=r"x\.bin holds lm_head\.weight, which device_map offloads"):
        add_weights(model, {"lm_head.weight": llava_state(oracle)["lm_head.weight"]}, Path("x.bin"))


def test_another_base_models_shapes_are_an_error(tmp_path, oracle, whole, vicuna):
    folder = write_projector(tmp_path / "wide", projector_state(oracle), intermediate_size=96)
    with pytest.raises(ValueError, match=r"vicuna.*: the files hold 'model\.layers\.0\.mlp\.\w+\.weight' of shape"):
        load(folder, vicuna)


def test_a_base_model_is_whole(tmp_path, oracle, whole):
    folder = write_projector(tmp_path, projector_state(oracle))
    with pytest.raises(ValueError, match="given as the base model, is a projector checkpoint; it must be a whole"):
        load(folder, folder)
    with pytest.raises(ValueError, match="is a projector checkpoint: .* give model_base"):
        load_pretrained_model(str(folder), device="cpu")


@pytest.mark.parametrize("kind", ["projector", "lora"])
def test_a_base_that_was_swapped_with_the_model_is_refused(tmp_path, oracle, whole, kind):
    part = write_projector(tmp_path, projector_state(oracle)) if kind == "projector" else write_lora(tmp_path, None)
    with pytest.raises(ValueError, match=f"is a {kind} checkpoint; it must be a whole model: swap --model-path and"):
        load(whole, part)


def test_a_base_that_is_not_needed_must_exist(tmp_path, whole):
    with pytest.raises(FileNotFoundError, match="there is no checkpoint folder '.*/nowhere'"):
        load(whole, tmp_path / "nowhere")


def test_a_whole_checkpoint_says_that_it_does_not_use_a_base(whole, vicuna, caplog):
    load(whole, vicuna)
    assert f"{whole} has all weights: the base model {vicuna} is not used" in caplog.text


def test_added_tokens_begin_as_the_mean_of_the_others(tmp_path, oracle, vicuna, clip):
    """As LLaVA's training adds them; what was trained of them lies in the projector's file."""
    embeddings = torch.cat([llava_state(oracle)["model.embed_tokens.weight"], torch.full((2, 64), 0.5)])
    folder = write_projector(
        tmp_path,
        {**projector_state(oracle), "model.embed_tokens.weight": embeddings},
        mm_vision_tower=clip,
        vocab_size=VOCABULARY + 2,
    )
    model = load(folder, vicuna)
    torch.testing.assert_close(model.get_input_embeddings().weight.detach(), embeddings)
    head = llava_state(oracle)["lm_head.weight"]
    torch.testing.assert_close(model.lm_head.weight[VOCABULARY:].detach(), head.mean(0).expand(2, -1))
    torch.testing.assert_close(model.lm_head.weight[:VOCABULARY].detach(), head)


def test_a_lora_that_peft_wrote_is_merged_into_its_language_model(tmp_path, oracle, whole, vicuna, clip):
    tuned = get_peft_model(
        load_pretrained_model(str(whole), device="cpu")[1],
        LoraConfig(r=4, target_modules=r"model\.layers\.\d+\.self_attn\.(q|v)_proj", lora_alpha=8),
    )
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
        wanted = tuned(PROMPT, images=PICTURE).logits
    tuned.save_pretrained(tmp_path)
    write_config(tmp_path, mm_vision_tower=clip)
    extra = {f"base_model.model.{name}": tensor for name, tensor in projector_state(oracle).items()}
    torch.save(extra, tmp_path / "non_lora_trainables.bin")
    torch.testing.assert_close(logits(load(tmp_path, vicuna)), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("extra", [None, {}], ids=["a step's folder", "the end's"])
def test_a_lora_without_the_projector_that_was_trained_beside_it_says_so(tmp_path, whole, caplog, extra):
    """As the `checkpoint-N` folders of LLaVA's training are; its end writes the file, empty or not."""
    folder = write_lora(tmp_path / "checkpoint-20", extra)
    load_pretrained_model(folder, whole, device="cpu")
    assert (f"{folder} has no non_lora_trainables.bin" in caplog.text) == (extra is None)
