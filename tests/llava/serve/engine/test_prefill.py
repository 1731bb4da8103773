"""Prompts that run in pieces, beside others, have the logits that transformers' own models give each alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.builder import load_pretrained_model
from llava.serve.engine.prefill import place_prompt, prefill, run_tokens
from llava.serve.engine.slots import SlotCache
from tests.llava.model.language_models import LONG, PIXELS, PROMPT, make_oracle, write_checkpoint

NEXT = [40, 41, 42]
PROMPTS = [PROMPT, PROMPT[:4], [1, 20, 33]]
LONGS = [LONG, LONG[: LONG.index(30) + 1], [1, 20, 33]]
IMAGES = [2, 1, 0]


def finish(work: Any) -> Any:
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


@pytest.mark.parametrize("most_tokens", [10_000, 100, 7])
@pytest.mark.parametrize("kind", ["mistral", "mistral, window", "qwen2, window", "llama 3"])
@torch.inference_mode()
def test_logits_equal_transformers_llavas_whatever_the_pieces(tmp_path: Path, kind: str, most_tokens: int) -> None:
    """Its windows are shorter than the prompts; each row then continues by the same tokens."""
    oracle = make_oracle(kind)
    model = load_pretrained_model(write_checkpoint(tmp_path, kind, oracle), device="cpu")[1]
    images = model.encode_tokens(PIXELS)
    placed = [place_prompt(model, torch.tensor(p), images[:n]) for p, n in zip(PROMPTS, IMAGES, strict=True)]
    cache = SlotCache(model.config.num_hidden_layers, [0, 0, 0])
    steps = [finish(prefill(model, placed, cache, most_tokens))]
    for i, token in enumerate(NEXT):
        positions = torch.tensor([[prompt.end + i] for prompt in placed])
        steps.append(run_tokens(model, cache, [1, 1, 1], None, positions, input_ids=torch.full((3, 1), token)))
    for row, (ids, count) in enumerate(zip(LONGS, IMAGES, strict=True)):
        whole = torch.tensor([ids + NEXT])
        pixels = {"pixel_values": PIXELS[:count]} if count else {}
        expected = oracle(input_ids=whole, **pixels).logits[0, len(ids) - 1 :]
        torch.testing.assert_close(torch.stack([step[row] for step in steps]), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("known", [2, 3, 5, len(PROMPT)])
@pytest.mark.parametrize("kind", ["mistral, window", "qwen2, window"])
@torch.inference_mode()
def test_a_prompt_continues_keys_and_values_of_another_row(tmp_path: Path, kind: str, known: int) -> None:
    """The known elements end in front of an image, behind one, in the text and at the end."""
    oracle = make_oracle(kind)
    model = load_pretrained_model(write_checkpoint(tmp_path, kind, oracle), device="cpu")[1]
    images = model.encode_tokens(PIXELS)
    ids = torch.tensor(PROMPT + NEXT)
    first = SlotCache(model.config.num_hidden_layers, [0, 0])
    prompts = [place_prompt(model, torch.tensor(p), images[:n]) for p, n in zip(PROMPTS[1::-1], (1, 2), strict=True)]
    finish(prefill(model, prompts, first, 50))
    count = PROMPT[:known].count(IMAGE_TOKEN_INDEX)
    cache = SlotCache(model.config.num_hidden_layers, [0])
    cache.reserve(1, len(LONG) + len(NEXT))
    cache.write(0, first.read(1, known + 63 * count))
    rest = place_prompt(model, ids, images[count:], known, [image.span for image in images[:count]])
    expected = oracle(input_ids=torch.tensor([LONG + NEXT]), pixel_values=PIXELS).logits[0, -1]
    torch.testing.assert_close(finish(prefill(model, [rest], cache, 50))[0], expected, atol=1e-4, rtol=1e-4)
    assert cache.lengths == [len(LONG) + len(NEXT)]
