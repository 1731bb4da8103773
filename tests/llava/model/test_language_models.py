"""LLaVA on Mistral, Llama 3, Yi, Qwen2, MPT against transformers' Llava on them: same weights, logits and answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from llava.model.builder import load_pretrained_model
from llava.model.loading.weights import MODELS
from tests.llava.checkpoints import llava_state, write_tokenizer
from tests.llava.model.language_models import (
    COUNTED,
    KINDS,
    LONG,
    PIXELS,
    PROMPT,
    TYPES,
    make_oracle,
    write_checkpoint,
)

NATIVE_TREE = {"alpha": 0.0, "max_tokens": None}


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def theirs(kind):
    return make_oracle(kind)


@pytest.fixture(scope="module")
def folder(kind, theirs, tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("llava"), kind, theirs)


@pytest.fixture(scope="module")
def expected(theirs):
    long = torch.tensor([LONG])
    with torch.no_grad():
        return theirs(input_ids=long, pixel_values=PIXELS, attention_mask=torch.ones_like(long)).logits


@pytest.mark.parametrize(
    ("kind", "qlip"),
    [*((kind, None) for kind in KINDS), *((kind, NATIVE_TREE) for kind in ("mistral, window", "llama 3", "mpt"))],
    indirect=["kind"],
    scope="module",
)
@torch.no_grad()
def test_logits_of_images_and_of_text_and_a_greedy_answer_equal_transformers(theirs, folder, expected, kind, qlip):
    qlip = {**qlip, **COUNTED} if qlip and kind == "mpt" else qlip
    _, ours, _, context = load_pretrained_model(folder, device="cpu", qlip=qlip)
    assert ours.config.model_type == TYPES[KINDS[kind]["model_type"]]
    assert type(ours) is MODELS[type(ours.config)] and context == 2048
    got = ours(torch.tensor([PROMPT]), images=PIXELS).logits
    torch.testing.assert_close(got, expected, atol=1e-5 * expected.abs().max().item(), rtol=0)
    assert expected.std() > 0.05
    long, options = torch.tensor([LONG]), {"do_sample": False, "max_new_tokens": 8, "pad_token_id": 0}
    answer = theirs.generate(input_ids=long, pixel_values=PIXELS, attention_mask=torch.ones_like(long), **options)
    assert torch.equal(ours.generate(torch.tensor([PROMPT]), images=PIXELS, **options), answer[:, len(LONG) :])
    text = torch.tensor([list(range(1, 90))])
    torch.testing.assert_close(ours(text).logits, theirs(input_ids=text).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["mistral", "yi", "qwen2", "mpt"], indirect=True, scope="module")
@torch.no_grad()
def test_a_saved_checkpoint_has_llavas_names_and_loads_by_the_auto_classes(theirs, kind, folder, expected, tmp_path):
    load_pretrained_model(folder, device="cpu")[1].save_pretrained(tmp_path)
    tied = {"lm_head.weight"} if KINDS[kind].get("tie_word_embeddings") else set()
    assert set(load_file(tmp_path / "model.safetensors")) == set(llava_state(theirs)) - tied
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is MODELS[type(again.config)]
    got = again(torch.tensor([PROMPT]), images=PIXELS).logits
    torch.testing.assert_close(got, expected, atol=1e-5 * expected.abs().max().item(), rtol=0)


@pytest.mark.parametrize("kind", ["mistral, window", "llama 3", "qwen2, window", "mpt"], indirect=True, scope="module")
@torch.no_grad()
def test_transformers_format_loads(theirs, expected, tmp_path):
    theirs.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    got = load_pretrained_model(tmp_path, device="cpu")[1](torch.tensor([PROMPT]), images=PIXELS).logits
    torch.testing.assert_close(got, expected, atol=1e-5 * expected.abs().max().item(), rtol=0)


@torch.no_grad()
def test_the_language_model_alone_is_a_base(theirs, kind, tmp_path):
    """As its publisher's own checkpoint, of type "mistral", "llama" or "qwen2"."""
    text = AutoModelForCausalLM.from_config(theirs.config.get_text_config())
    text.base_model.load_state_dict(theirs.model.language_model.state_dict())
    text.lm_head.load_state_dict(theirs.lm_head.state_dict())
    text.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    _, ours, processor, _ = load_pretrained_model(tmp_path, device="cpu")
    assert processor is None and ours.config.model_type == TYPES[KINDS[kind]["model_type"]]
    ids = torch.tensor([[1, 20, 30]])
    torch.testing.assert_close(ours(ids).logits, text(ids).logits, atol=1e-5, rtol=1e-5)
