"""Adapters, deltas and quantisation on Mistral and Qwen2, and tokenizers that name no padding token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cosine_similarity
from transformers import AutoModelForCausalLM, LlavaForConditionalGeneration

from llava.model import apply_delta, make_delta
from llava.model.builder import load_pretrained_model
from llava.serve.engine import ChatEngine
from llava.serve.engine.params import Sampling
from llava.train.data.collator import DataCollatorForSupervisedDataset
from tests.llava.checkpoints import llava_config
from tests.llava.model.language_models import KINDS, LONG, PIXELS, PROMPT, TYPES, make_oracle, write_checkpoint
from tests.llava.model.loading.test_tokenizer_released import LLAMA_3, QWEN, write_tokenizer
from tests.weights import randomise

NAMES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MPT_NAMES = ["Wqkv", "out_proj", "up_proj", "down_proj"]
NO_PADDING = {
    "llama 3": (LLAMA_3, {"bos_token": LLAMA_3[0], "eos_token": LLAMA_3[1]}, "llava_llama_3"),
    "qwen2": (QWEN, {"bos_token": None, "eos_token": QWEN[2]}, "qwen_1_5"),
}


def expect(oracle: LlavaForConditionalGeneration) -> torch.Tensor:
    long = torch.tensor([LONG])
    with torch.no_grad():
        return oracle(input_ids=long, pixel_values=PIXELS, attention_mask=torch.ones_like(long)).logits


def logits(folder: Path, base: Path | None = None, **options: Any) -> torch.Tensor:
    model = load_pretrained_model(folder, base, device="cpu", **options)[1]
    with torch.no_grad():
        return model(torch.tensor([PROMPT]), images=PIXELS.to(model.dtype)).logits.float()


def language_model(oracle: LlavaForConditionalGeneration) -> Any:
    text = AutoModelForCausalLM.from_config(oracle.config.get_text_config())
    text.base_model.load_state_dict(oracle.model.language_model.state_dict())
    text.lm_head.load_state_dict(oracle.lm_head.state_dict())
    return text


@pytest.mark.parametrize("kind", ["mistral", "qwen2", "mpt"])
def test_a_lora_is_merged_as_peft_merges_it(tmp_path: Path, kind: str) -> None:
    oracle = make_oracle(kind)
    base = write_checkpoint(tmp_path / "base", kind, oracle)
    names = MPT_NAMES if kind == "mpt" else NAMES
    adapted = get_peft_model(
        language_model(oracle), LoraConfig(r=4, target_modules=names, init_lora_weights=False, task_type="CAUSAL_LM")
    )
    adapted.save_pretrained(tmp_path / "lora")
    own = {**KINDS[kind], "model_type": TYPES[KINDS[kind]["model_type"]]}
    (tmp_path / "lora" / "config.json").write_text(json.dumps(llava_config(**own)))
    plain = expect(oracle)
    oracle.model.language_model.load_state_dict(adapted.merge_and_unload().base_model.state_dict())
    merged = expect(oracle)
    assert (merged - plain).abs().max() > 0.1
    got = logits(tmp_path / "lora", base)
    torch.testing.assert_close(got, merged, atol=2e-5 * merged.abs().max().item(), rtol=0)


@pytest.mark.parametrize("kind", ["mistral", "qwen2", "mpt"])
def test_base_and_delta_give_the_model_again(tmp_path: Path, kind: str) -> None:
    oracle = make_oracle(kind)
    target = write_checkpoint(tmp_path / "target", kind, oracle)
    base = AutoModelForCausalLM.from_config(oracle.config.get_text_config())
    randomise(base, seed=1).save_pretrained(tmp_path / "base")
    flags = [
        "--base-model-path",
        str(tmp_path / "base"),
        "--delta-path",
        str(tmp_path / "delta"),
        "--target-model-path",
    ]
    assert make_delta.main([*flags, str(target)]) == 0
    assert apply_delta.main([*flags, str(tmp_path / "again")]) == 0
    expected = expect(oracle)
    torch.testing.assert_close(logits(tmp_path / "again"), expected, atol=1e-4 * expected.abs().max().item(), rtol=0)


@pytest.mark.parametrize(
    ("kind", "flag", "least"),
    [("mistral", "load_4bit", 0.75), ("qwen2", "load_8bit", 0.98), ("mpt", "load_4bit", 0.75)],
)
def test_a_quantised_model_answers_about_the_same(tmp_path: Path, kind: str, flag: str, least: float) -> None:
    oracle = make_oracle(kind)
    got = logits(write_checkpoint(tmp_path, kind, oracle), **{flag: True})
    assert cosine_similarity(got.flatten(), expect(oracle).flatten(), dim=0) > least


@pytest.mark.parametrize("kind", NO_PADDING)
@torch.no_grad()
def test_without_a_padding_token_a_row_does_not_depend_on_the_others(tmp_path: Path, kind: str) -> None:
    """In generation, in a server's engine, and in a batch of training."""
    special, names, template = NO_PADDING[kind]
    folder = write_checkpoint(tmp_path, kind, make_oracle(kind))
    (folder / "tokenizer.model").unlink()
    settings = {**names, "tokenizer_class": "PreTrainedTokenizerFast"}
    write_tokenizer(folder, special, settings, adds_bos=names["bos_token"] is not None)
    tokenizer, model, processor, context = load_pretrained_model(folder, device="cpu")
    end = tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id == end

    ids = torch.tensor([PROMPT, [end] * 4 + PROMPT[3:4] + PROMPT[5:]])
    mask = torch.tensor([[1] * 7, [0] * 4 + [1] * 3])
    ids[1, 4:] = torch.tensor([1, 20, end])  # an end of its own, which is not padding
    options = {"do_sample": False, "max_new_tokens": 6}
    together = model.generate(ids, images=PIXELS, attention_mask=mask, **options)
    alone = [model.generate(ids[:1], images=PIXELS, **options), model.generate(ids[1:, 4:], **options)]
    for row, own in zip(together, alone, strict=True):
        assert torch.equal(row[: own.shape[1]], own[0]) and (row[own.shape[1] :] == end).all()

    engine = ChatEngine(tokenizer, model, processor, context, template)
    questions, sampling = ["What is in the picture?", "What?"], Sampling(temperature=0, max_new_tokens=6)
    answers = [engine.submit(engine.question(text, 0), [], sampling) for text in questions]
    assert ["".join(answer) for answer in answers] == [
        "".join(engine.submit(engine.question(text, 0), [], sampling)) for text in questions
    ]
    engine.close()

    rows = [torch.tensor([1, 20, end]), torch.tensor([1, 20, 30, 31, end])]
    items = [{"input_ids": row, "labels": row, "images": [], "visual_tokens": 0} for row in rows]
    batch = DataCollatorForSupervisedDataset(tokenizer)(items)
    assert batch["attention_mask"].sum(1).tolist() == [3, 5]
    assert batch["labels"][0].tolist() == [1, 20, end, -100, -100]
