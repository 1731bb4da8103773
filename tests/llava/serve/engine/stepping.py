"""Rows that come, go and outgrow their slots, run a token at a time: the logits of every step, in two ways."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from llava.model.vision.image_tokens import ImageTokens
from llava.serve.engine.params import Sampling
from llava.serve.engine.prefill import bias_prompts, place_prompt, prefill
from llava.serve.engine.running import RunningRows
from llava.serve.engine.slots import SlotCache
from llava.serve.engine.streams import Stream, run_to_end


def weigh(images: Sequence[ImageTokens]) -> list[ImageTokens]:
    """Lets the tokens of images weigh from one to three in the attention."""
    return [
        replace(image, span=replace(image.span, sizes=torch.linspace(1.0, 3.0, image.span.count))) for image in images
    ]


def add(running: RunningRows[Any], prompt: Sequence[int], images: Sequence[ImageTokens]) -> None:
    """Runs a prompt and adds its row."""
    placed = place_prompt(running.model, torch.tensor(prompt), images)
    cache = SlotCache(len(running.cache.layers), [0])
    run_to_end(prefill(running.model, [placed], cache))
    stream = Stream(SimpleNamespace(sampling=Sampling(temperature=0.0)), tokens=[40 + len(running.streams)])
    stream.position = placed.end
    running.add([stream], cache, bias_prompts(running.model, [placed]))


def step(running: RunningRows[Any], times: int) -> Iterator[Tensor]:
    """Runs tokens of all rows; yields the next-token logits of each."""
    for _ in range(times):
        yield running.run().float().cpu()
        for row, stream in enumerate(running.streams):
            stream.tokens.append(50 + (7 * len(stream.tokens) + row) % 40)
            stream.position += 1


@torch.inference_mode()
def run_rows(
    running: RunningRows[Any], images: Sequence[ImageTokens], prompts: Sequence[Sequence[int]], growth: int = 120
) -> list[Tensor]:
    """Lets rows come, go and outgrow their slots; gives the logits of every step.

    Args:
        running: without rows.
        images: two.
        prompts: with two, with one and without images.
        growth: Steps until the second row has outgrown its slot.
    """
    both, one, none = prompts
    add(running, both, images)
    add(running, one, images[:1])
    logits = [*step(running, 6)]
    add(running, none, [])
    logits += step(running, 6)
    running.remove(0)
    logits += step(running, growth)
    running.clear()
    add(running, both, images)
    return [*logits, *step(running, 5)]
