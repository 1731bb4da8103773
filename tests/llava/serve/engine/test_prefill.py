"""Prompts that run in pieces, beside others, have the logits that transformers' own models give each alone."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llava.constants import IMAGE_TOKEN_INDEX
from llava.serve.engine.prefill import can_continue, place_prompt, prefill, run_tokens
from llava.serve.engine.slots import SlotCache
from llava.serve.engine.streams import run_to_end
from tests.llava.model.language_models import LONG, PIXELS, PROMPT, load_both

NEXT = [40, 41, 42]
PROMPTS = [PROMPT, PROMPT[:4], [1, 20, 33]]
LONGS = [LONG, LONG[: LONG.index(30) + 1], [1, 20, 33]]
IMAGES = [2, 1, 0]


load = cache(load_both)


@pytest.mark.parametrize(
    ("kind", "most_tokens"),
    [
        ("mistral", 10_000),
        ("mistral, window", 100),
        ("mistral, window", 7),
        ("qwen2, window", 10_000),
        ("qwen2, window", 7),
        ("llama 3", 100),
        ("mpt", 10_000),
        ("mpt", 7),
    ],
)
@torch.inference_mode()
def test_logits_equal_transformers_llavas_whatever_the_pieces(kind: str, most_tokens: int) -> None:
    """Its windows are shorter than the prompts; each row then continues by the same tokens."""
    oracle, model = load(kind)
    images = model.encode_tokens(PIXELS)
    placed = [place_prompt(model, torch.tensor(p), images[:n]) for p, n in zip(PROMPTS, IMAGES, strict=True)]
    cache = SlotCache(model.config.num_hidden_layers, [0, 0, 0])
    steps = [run_to_end(prefill(model, placed, cache, most_tokens))]
    for i, token in enumerate(NEXT):
        positions = torch.tensor([[prompt.end + i] for prompt in placed])
        steps.append(run_tokens(model, cache, [1, 1, 1], None, positions, input_ids=torch.full((3, 1), token)))
    for row, (ids, count) in enumerate(zip(LONGS, IMAGES, strict=True)):
        whole = torch.tensor([ids + NEXT])
        pixels = {"pixel_values": PIXELS[:count]} if count else {}
        expected = oracle(input_ids=whole, **pixels).logits[0, len(ids) - 1 :]
        torch.testing.assert_close(torch.stack([step[row] for step in steps]), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("known", [2, 3, 5, len(PROMPT)])
@pytest.mark.parametrize("kind", ["mistral, window", "qwen2, window", "mpt"])
@torch.inference_mode()
def test_a_prompt_continues_keys_and_values_of_another_row(kind: str, known: int) -> None:
    """The known elements end before an image, after one, in the text and at the end."""
    oracle, model = load(kind)
    images = model.encode_tokens(PIXELS)
    ids = torch.tensor(PROMPT + NEXT)
    first = SlotCache(model.config.num_hidden_layers, [0, 0])
    prompts = [place_prompt(model, torch.tensor(p), images[:n]) for p, n in zip(PROMPTS[1::-1], (1, 2), strict=True)]
    run_to_end(prefill(model, prompts, first, 50))
    count = PROMPT[:known].count(IMAGE_TOKEN_INDEX)
    cache = SlotCache(model.config.num_hidden_layers, [0])
    cache.reserve(1, len(LONG) + len(NEXT))
    cache.write(0, first.read(1, known + 63 * count))
    rest = place_prompt(model, ids, images[count:], known, [image.span for image in images[:count]])
    expected = oracle(input_ids=torch.tensor([LONG + NEXT]), pixel_values=PIXELS).logits[0, -1]
    torch.testing.assert_close(run_to_end(prefill(model, [rest], cache, 50))[0], expected, atol=1e-4, rtol=1e-4)
    assert cache.lengths == [len(LONG) + len(NEXT)]


def test_what_only_transformers_generate_can_do_is_left_to_it() -> None:
    def fits(generation: Any = None, attention: str = "sdpa") -> bool:
        config = SimpleNamespace(_attn_implementation=attention)
        return can_continue(SimpleNamespace(config=config, generation_config=SimpleNamespace(**(generation or {}))))

    assert fits() and fits(attention="eager") and not fits(attention="flash_attention_2")
    assert not fits(generation={"no_repeat_ngram_size": 3}) and fits(generation={"no_repeat_ngram_size": 0})
    for shaped in ({"exponential_decay_length_penalty": (4, 1.5)}, {"watermarking_config": {"bias": 2.0}}):
        assert not fits(generation=shaped)
    assert not fits(generation={"forced_eos_token_id": 0}) and not fits(generation={"guidance_scale": 0.5})
    neutral = {"forced_eos_token_id": None, "guidance_scale": 1.0, "min_length": 0, "remove_invalid_values": False}
    assert fits(generation=neutral)
