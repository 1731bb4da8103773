"""Packed rows: prompts that share a row get the logits, losses and gradients that they get in rows of their own."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.torch import load
from torch.nn.utils.rnn import pad_sequence
from transformers.integrations import flash_attention

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model import LlavaMistralConfig, LlavaMistralForCausalLM
from llava.model.config import LlavaConfig
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.model.packing import packed_mask
from tests.llava.checkpoints import TEXT, VISION, llava_weights

IMAGE = IMAGE_TOKEN_INDEX
PROMPTS = [
    [1, 20, IMAGE, 30, 31, 2],
    [1, 60, 61],
    [1, IMAGE, 40, IMAGE, 41, 42],
    [7],
    [1, 50, 51, 52, IMAGE],
]
"""Text, one image, two images; a prompt of one token; one that ends in an image."""
QLIP = {"alpha": 0.3, "criterion": "gradient", "coarsest": "any"}
TOWERS: dict[str, Any] = {
    "clip": None,
    "raster positions and a bias": {**QLIP, "llm_size_bias": -0.25},
    "raster positions": {**QLIP, "llm_size_bias": 0.0},
    "sequential positions and a bias": {**QLIP, "llm_positions": "sequential"},
    "native weight": {**QLIP, "llm_weight": "native", "thumbnail": True},
}


def make_pictures(sizes: list[tuple[int, int]]) -> list[torch.Tensor]:
    """Pictures with flat and busy halves, so that leaves differ in size."""
    generator = torch.Generator().manual_seed(0)
    pictures = [torch.randn(3, *size, generator=generator) for size in sizes]
    for picture in pictures:
        picture[:, :, : picture.shape[2] // 2] = 0.5
    return pictures


NATIVE = make_pictures([(112, 112)] * 4)
RAGGED = make_pictures([(84, 56), (28, 56), (70, 28), (14, 14)])


def make_model(qlip: Any, attention: str = "sdpa") -> LlavaLlamaForCausalLM:
    model = LlavaLlamaForCausalLM(
        LlavaConfig(
            **TEXT,
            mm_vision_config=VISION,
            mm_projector_type="mlp2x_gelu",
            mm_hidden_size=64,
            qlip=qlip,
            attn_implementation=attention,
        )
    )
    model.load_state_dict(load(llava_weights()))
    return model.train()


def make_batch(prompts: list[list[int]], **images: Any) -> dict[str, Any]:
    ids = [torch.tensor(prompt) for prompt in prompts]
    labels = [row.masked_fill(row == IMAGE, IGNORE_INDEX) for row in ids]
    return {
        "input_ids": pad_sequence(ids, True, 0),
        "labels": pad_sequence(labels, True, IGNORE_INDEX),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], True, 0).bool(),
        **images,
    }


def samples_of(logits: torch.Tensor, lengths: list[int], packs: list[int]) -> list[torch.Tensor]:
    """The logits of each prompt, found by counting: rows in the order of their numbers, prompts in their own."""
    used = dict.fromkeys(sorted(set(packs)), 0)
    found = []
    for length, pack in zip(lengths, packs, strict=True):
        row = sorted(set(packs)).index(pack)
        found.append(logits[row, used[pack] : used[pack] + length])
        used[pack] += length
    return found


def lengths_alone(model: Any, batch: dict[str, Any]) -> list[int]:
    spliced = model.splice_images(batch["input_ids"], batch["attention_mask"], None, batch["images"], "right")
    return spliced.attention_mask.sum(1).tolist()


def make_case(name: str) -> tuple[Any, dict[str, Any]]:
    return make_model(TOWERS[name]), make_batch(PROMPTS, images=NATIVE if name == "clip" else RAGGED)


@pytest.fixture(scope="module", params=TOWERS)
def every_case(request) -> tuple[Any, dict[str, Any]]:
    return make_case(request.param)


@pytest.fixture(scope="module", params=["clip", "raster positions and a bias"])
def case(request) -> tuple[Any, dict[str, Any]]:
    return make_case(request.param)


@hypothesis_settings(max_examples=3)
@given(packs=st.lists(st.integers(0, 3), min_size=len(PROMPTS), max_size=len(PROMPTS)))
def test_each_prompt_has_the_logits_that_it_has_alone(every_case, packs):
    model, batch = every_case
    lengths = lengths_alone(model, batch)
    with torch.no_grad():
        alone, packed = model(**batch), model(**batch, packs=torch.tensor(packs))
    apart = samples_of(alone.logits, lengths, list(range(len(packs))))
    for wanted, got in zip(apart, samples_of(packed.logits, lengths, packs), strict=True):
        torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(packed.loss, alone.loss, atol=1e-5, rtol=1e-6)
    assert alone.logits.std() > 0.05


def test_gradients_are_the_same_through_projector_and_trunk(case):
    model, batch = case
    gradients = []
    for packs in (None, torch.tensor([0, 1, 0, 0, 1])):
        model.zero_grad()
        model(**batch, packs=packs).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert {"model.mm_projector.0.weight", "model.layers.0.self_attn.q_proj.weight"} <= gradients[0].keys()
    assert gradients[0].keys() == gradients[1].keys()
    for name, wanted in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], wanted, atol=1e-5, rtol=1e-4)


def test_the_loss_is_divided_by_the_number_of_items_given(case):
    model, batch = case
    targets = (batch["labels"][:, 1:] != IGNORE_INDEX).sum()
    with torch.no_grad():
        mean = model(**batch).loss
        packed = model(**batch, packs=torch.zeros(len(PROMPTS), dtype=torch.int64), num_items_in_batch=2 * targets)
    torch.testing.assert_close(packed.loss, mean / 2, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("name", ["clip", "raster positions and a bias"])
@torch.no_grad()
def test_eager_attention_gives_the_same(name):
    batch = make_batch(PROMPTS, images=NATIVE if name == "clip" else RAGGED)
    packs = torch.tensor([0, 0, 1, 1, 0])
    got = make_model(TOWERS[name], "eager")(**batch, packs=packs)
    torch.testing.assert_close(got.loss, make_model(TOWERS[name])(**batch).loss, atol=1e-5, rtol=1e-6)


@torch.no_grad()
def test_text_alone_is_packed_too(case):
    model, _ = case
    batch = make_batch([[1, 2, 3], [4, 5], [6, 7, 8, 9]])
    packed = model(**batch, packs=torch.tensor([0, 0, 0]))
    assert packed.logits.shape[:2] == (1, 9)
    torch.testing.assert_close(packed.loss, model(**batch).loss, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_changes_nothing(case, reentrant):
    model, batch = case
    packs = torch.tensor([0, 0, 0, 1, 1])
    plain = model(**batch, packs=packs)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    try:
        checkpointed = model(**batch, packs=packs)
        torch.testing.assert_close(checkpointed.loss, plain.loss, atol=1e-6, rtol=0)
        model.zero_grad()
        checkpointed.loss.backward()
        assert model.model.mm_projector[0].weight.grad.any()
    finally:
        model.gradient_checkpointing_disable()


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_sliding_window_stays_within_the_prompt(attention):
    config = LlavaMistralConfig(
        **TEXT,
        sliding_window=3,
        mm_vision_config=VISION,
        mm_projector_type="mlp2x_gelu",
        mm_hidden_size=64,
        attn_implementation=attention,
    )
    model = LlavaMistralForCausalLM(config)
    model.load_state_dict(load(llava_weights()))
    batch = make_batch(PROMPTS, images=NATIVE)
    packed = model(**batch, packs=torch.tensor([0, 0, 0, 0, 0]))
    torch.testing.assert_close(packed.loss, model(**batch).loss, atol=1e-5, rtol=1e-6)


def test_the_mask_of_two_prompts_and_padding():
    mask = packed_mask(torch.tensor([[0, 0, 0, 2, 2, -1]]), window=2)
    assert mask.shape == (1, 1, 6, 6)
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


def attend_each(seen: list[dict[str, Any]]) -> Any:
    """FlashAttention's variable-length attention from its definition: each sequence by itself, causal."""

    def forward(query, key, value, attention_mask, softmax_scale, **options):
        assert attention_mask is None and len(query) == 1
        seen.append(options)
        borders = options["cu_seq_lens_q"].tolist()
        parts = []
        for start, end in pairwise(borders):
            q, k, v = (x[:, start:end].transpose(1, 2) for x in (query, key, value))
            parts.append(F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=softmax_scale).transpose(1, 2))
        return torch.cat(parts, dim=1)

    return forward


@torch.no_grad()
@pytest.mark.parametrize("name", ["clip", "raster positions"])
def test_flash_attention_gets_one_row_without_padding_and_its_borders(monkeypatch, name):
    model = make_model(TOWERS[name])
    batch = make_batch(PROMPTS, images=NATIVE if name == "clip" else RAGGED)
    lengths, wanted = lengths_alone(model, batch), model(**batch)
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(flash_attention, "_flash_attention_forward", attend_each(seen))
    monkeypatch.setattr(model.config, "_attn_implementation_internal", "flash_attention_2")
    got = model(**batch, packs=torch.tensor([3, 1, 1, 0, 2]))
    torch.testing.assert_close(got.loss, wanted.loss, atol=1e-5, rtol=1e-6)
    for row, logits in enumerate(got.logits[0].split(lengths)):
        torch.testing.assert_close(logits, wanted.logits[row, : lengths[row]], atol=2e-5, rtol=1e-5)
    for side in "qk":
        assert seen[0][f"cu_seq_lens_{side}"].tolist() == [sum(lengths[:i]) for i in range(len(lengths) + 1)]
        assert seen[0][f"cu_seq_lens_{side}"].dtype == torch.int32
        assert seen[0][f"max_length_{side}"] == max(lengths)


@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention"])
def test_an_attention_that_cannot_do_it_is_an_error(monkeypatch, attention):
    model = make_model(TOWERS["raster positions and a bias"])
    monkeypatch.setattr(model.config, "_attn_implementation_internal", attention)
    with pytest.raises(ValueError, match=attention):
        model(**make_batch(PROMPTS, images=RAGGED), packs=torch.tensor([0, 0, 1, 1, 1]))


@pytest.mark.parametrize("packs", [torch.tensor([0, 1]), torch.zeros(5), torch.zeros(1, 5, dtype=torch.int64)])
def test_another_number_of_rows_is_an_error(case, packs):
    model, batch = case
    with pytest.raises(ValueError, match=r"it must be int64 \(5,\)"):
        model(**batch, packs=packs)


def test_generation_takes_no_packs(case):
    model, _ = case
    with pytest.raises(ValueError, match="generate takes no packs"):
        model.generate(torch.tensor([[1, 2]]), packs=torch.tensor([0]))
    with pytest.raises(ValueError, match="packs were given with inputs_embeds"):
        model(inputs_embeds=torch.zeros(1, 2, 64), packs=torch.tensor([0]))
