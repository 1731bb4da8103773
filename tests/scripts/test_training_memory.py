"""scripts/training_memory.py: parameters as transformers and peft count them, activations as autograd keeps them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from scripts import training_memory
from scripts.training_memory import (
    MODELS,
    TOWER_PARAMETERS,
    Llama,
    activation_bytes,
    layer_bytes,
    one_gpu,
    sharded,
)

SMALL = Llama("small", width=64, inner=160, layers=2, heads=4, vocabulary=48)
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TOKENS, RANK = 32, 8


def build(model: Llama, layers: int, device: str = "meta") -> LlamaForCausalLM:
    sizes = {"hidden_size": model.width, "intermediate_size": model.inner, "num_attention_heads": model.heads}
    with torch.device(device):
        return LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=layers, vocab_size=model.vocabulary))


def kept_bytes(network: LlamaForCausalLM, mixed: bool, checkpointing: bool) -> int:
    """Counts what autograd keeps of a forward pass of TOKENS, apart from weights and copies of them."""
    network.train()
    if checkpointing:
        network.activation_checkpointing_enable({"use_reentrant": False})
    weights = {weight.untyped_storage().data_ptr() for weight in network.parameters()}
    shapes = {tuple(weight.shape) for weight in network.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights and not {tuple(tensor.shape), tuple(tensor.shape[::-1])} & shapes:
            kept[place] = tensor  # holding it keeps the place from being used again
        return tensor

    given = torch.randn(1, TOKENS, SMALL.width, dtype=network.model.embed_tokens.weight.dtype, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, mixed), saved_tensors_hooks(keep, lambda tensor: tensor):
        network.model(inputs_embeds=given, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def bytes_of_a_layer(mode: str, mixed: bool, checkpointing: bool = False) -> int:
    """The difference that a second layer makes."""
    counts = []
    for layers in (1, 2):
        network: Any = build(SMALL, layers, "cpu").requires_grad_(mode == "full")
        if mode == "LoRA":
            get_peft_model(network, LoraConfig(r=RANK, lora_dropout=0.0, target_modules=LINEARS))
        for weight in network.parameters():
            weight.data = weight.data.to(torch.float32 if mixed and weight.requires_grad else torch.bfloat16)
        counts.append(kept_bytes(network, mixed, checkpointing))
    return counts[1] - counts[0]


def test_parameters_are_those_of_transformers_and_peft() -> None:
    network: Any = build(SMALL, SMALL.layers)
    assert SMALL.parameters == sum(weight.numel() for weight in network.parameters())
    adapted = get_peft_model(network, LoraConfig(r=RANK, target_modules=LINEARS))
    assert SMALL.adapters(RANK) == adapted.get_nb_trainable_parameters()[0]


def test_7b_and_13b_have_the_published_numbers_of_parameters() -> None:
    assert [model.parameters for model in MODELS] == [6_738_415_616, 13_015_864_320]


def test_the_towers_parameters_are_transformers() -> None:
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    with torch.device("meta"):
        tower = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=336, patch_size=14))
    assert sum(weight.numel() for weight in tower.parameters()) == TOWER_PARAMETERS


@pytest.mark.parametrize("mixed", [True, False], ids=["mixed precision", "bfloat16"])
@pytest.mark.parametrize("mode", ["full", "projector"])
def test_a_layers_activations_are_what_autograd_keeps(mode: str, mixed: bool) -> None:
    assert bytes_of_a_layer(mode, mixed) == TOKENS * layer_bytes(SMALL, mode, RANK, mixed)


def test_loras_activations_are_what_autograd_keeps() -> None:
    """Without dropout there is no mask, and autograd keeps the adapters' inputs themselves, in bfloat16."""
    masks = 6 * SMALL.width + SMALL.inner
    assert bytes_of_a_layer("LoRA", True) == TOKENS * (layer_bytes(SMALL, "LoRA", RANK, True) - masks)


@pytest.mark.parametrize(("mixed", "width"), [(True, 4), (False, 2)])
def test_with_checkpointing_a_layer_keeps_its_input(mixed: bool, width: int) -> None:
    assert bytes_of_a_layer("full", mixed, checkpointing=True) == TOKENS * width * SMALL.width
    more = replace(SMALL, layers=SMALL.layers + 1)
    with_two, with_three = (activation_bytes(model, "full", RANK, TOKENS, True, mixed) for model in (SMALL, more))
    assert with_three - with_two == TOKENS * width * SMALL.width


def test_full_training_of_7b_counted_by_hand() -> None:
    """6 738 415 616 weights of the language model, 20 979 712 of the projector, 303 507 456 of the tower."""
    trained, tower, logits = 6_738_415_616 + 20_979_712, 2 * 303_507_456, 2048 * 14 * 32_000
    alone = one_gpu(MODELS[0], "full", 128, 2048)
    assert alone.activations == 32 * 2048 * 4 * 4096 + logits
    assert alone.total == tower + (4 + 4 + 8) * trained + alone.activations
    eight = sharded(MODELS[0], "full", 128, 2048, 8)
    assert eight.activations == 32 * 2048 * 2 * 4096 + logits
    assert eight.total == pytest.approx((tower + (2 + 2 + 12) * trained) / 8 + eight.activations)


def test_the_command_prints_every_mode(capsys: pytest.CaptureFixture[str]) -> None:
    assert training_memory.main(["--gpus", "4", "--batch", "2"]) == 0
    printed = capsys.readouterr().out
    assert "| full | 7B | 6759 M | 25.7 | 25.2 | 50.4 |" in printed and "each of 4 GPUs" in printed
    assert printed.count("(ZeRO-") == 8
