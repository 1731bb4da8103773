"""Generates a batch's answers in the engine's slots: shared prefixes run once, and finished answers leave the batch.

transformers' `generate` runs every prompt in full, and ended rows until the last one ends. Answers differ much in
length, and the prompts of several questions about one image share a prefix up to its last token.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.vision.image_tokens import ImageTokens
from llava.serve.engine.generate import Row
from llava.serve.engine.prefill import PlacedPrompt, bias_prompts, place_prompt, prefill
from llava.serve.engine.running import RunningRows
from llava.serve.engine.slots import SlotCache
from llava.serve.engine.streams import Stream, run_to_end

MAX_SHARED_COST = 0.8
"""A shared prefix is run once if that cuts the tokens to at most this fraction."""


@dataclass(frozen=True)
class Start:
    """The start of a prompt, up to the last token of its image, which other questions about it may share."""

    elements: int = 0
    """Ids of the prompt, the image's placeholder last; 0 without an image."""
    tokens: int = 0
    """Tokens in the language model."""
    key: Hashable = None
    """Equal for starts that are alike."""

    @classmethod
    def of(cls, ids: Tensor, image: ImageTokens | None) -> Start:
        """Finds the start of a prompt, int64 (L,)."""
        if image is None:
            return cls()
        place = int((ids == IMAGE_TOKEN_INDEX).nonzero()[0, 0])
        return cls(place + 1, place + image.span.count, (id(image), *ids[:place].tolist()))


@torch.inference_mode()
def decode_rows(model: Any, rows: Sequence[Row], images: Sequence[ImageTokens | None]) -> None:
    """Generates the answers of a batch through the rows' `take`; errors of the model are raised.

    Args:
        model: a LLaVA model for which `can_continue` holds.
        rows: the prompts, without beams, each with at most one image.
        images: each row's, projected; the same object for prompts about the same image.
    """
    running = RunningRows[Stream](model, joins=False)
    running.choose(_add_rows(running, rows, images))
    while running.streams:
        for row in running.ended():
            running.remove(row)
        if running.streams:
            running.choose(running.run())


def _add_rows(running: RunningRows[Stream], rows: Sequence[Row], images: Sequence[ImageTokens | None]) -> Tensor:
    """Runs the prompts of rows and adds the rows; returns the next-token logits of each, (B, V)."""
    model, streams = running.model, [Stream(row) for row in rows]
    starts = [Start.of(row.prompt, image) for row, image in zip(rows, images, strict=True)]
    lengths = [len(row.prompt) - start.elements + start.tokens for row, start in zip(rows, starts, strict=True)]
    cache = SlotCache(len(running.cache.layers), [0] * len(rows), joins=False)
    cache.reserve(len(rows), max(lengths))
    heads: dict[Hashable, PlacedPrompt] = {}
    if is_worth_sharing(starts, lengths):
        heads = _run_starts(model, rows, images, starts, cache)
    prompts = []
    for row, image, start in zip(rows, images, starts, strict=True):
        if start.key in heads:
            text = row.prompt[start.elements :].to(model.device)
            prompts.append(heads[start.key].continue_by(model.get_input_embeddings()(text)))
        else:
            prompts.append(place_prompt(model, row.prompt, [] if image is None else [image]))
    logits = run_to_end(prefill(model, prompts, cache))
    for stream, prompt in zip(streams, prompts, strict=True):
        stream.position = prompt.end - 1
    running.add(streams, cache, bias_prompts(model, prompts))
    return logits


def is_worth_sharing(starts: Sequence[Start], lengths: Sequence[int]) -> bool:
    """Whether running what prompts share once, in a pass before the others, saves enough tokens, padding included.

    Args:
        starts: of each prompt.
        lengths: tokens of each prompt.
    """
    longest = {start.key: start.tokens for start in starts if start.elements}
    rest = max(length - start.tokens for start, length in zip(starts, lengths, strict=True))
    apart = len(longest) * max(longest.values(), default=0) + len(starts) * rest
    return apart <= MAX_SHARED_COST * len(starts) * max(lengths)


def _run_starts(
    model: Any,
    rows: Sequence[Row],
    images: Sequence[ImageTokens | None],
    starts: Sequence[Start],
    cache: SlotCache,
) -> dict[Hashable, PlacedPrompt]:
    """Runs each start once, and writes its keys and values to the slots of all rows that begin so."""
    heads: dict[Hashable, PlacedPrompt] = {}
    for row, image, start in zip(rows, images, starts, strict=True):
        if image is not None and start.key not in heads:
            heads[start.key] = place_prompt(model, row.prompt[: start.elements], [image])
    once = SlotCache(len(cache.layers), [0] * len(heads), joins=False)
    run_to_end(prefill(model, list(heads.values()), once))
    numbers = {key: number for number, key in enumerate(heads)}
    begun = [row for row, start in enumerate(starts) if start.key in heads]
    cache.copy(once, begun, [numbers[starts[row].key] for row in begun])
    return heads
