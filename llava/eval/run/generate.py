"""Generates the answers to a batch of prompts about encoded images; each is the one that its prompt would get alone.

Greedy, by beams, or sampled. A sampled answer depends on its prompt and its own seed only, not on its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256

import torch
from torch import Tensor

from llava.eval.run.decode import decode_rows
from llava.mm_utils import tokenizer_image_token
from llava.model.vision.encoding import encode_prepared
from llava.model.vision.image_tokens import ImageTokens
from llava.model.vision.prepared_image import PreparedImage
from llava.model.vision.question_budget import refine_images
from llava.serve.engine.chat_engine import ChatEngine
from llava.serve.engine.errors import GenerationError
from llava.serve.engine.generate import Row, generate_rows
from llava.serve.engine.params import Sampling
from llava.serve.engine.prefill import can_continue
from llava.serve.engine.prompting import separators


def prompt_ids(engine: ChatEngine, text: str, num_images: int = 1) -> Tensor:
    """Tokenizes a question in the engine's prompt format, int64 (L,)."""
    prompt = engine.question(text, num_images).get_prompt()
    return torch.tensor(tokenizer_image_token(prompt, engine.tokenizer))


@torch.inference_mode()
def refine_for_questions(
    engine: ChatEngine,
    prompts: Sequence[Tensor],
    prepared: Sequence[PreparedImage | None],
    tokens: Sequence[ImageTokens | None],
) -> tuple[list[PreparedImage | None], list[ImageTokens | None]]:
    """Shows each prompt its image, split where its question attends to if that decides; others are returned as given.

    Args:
        engine: the model.
        prompts: int64 (L,) each, with one question about at most one image.
        prepared: each prompt's image.
        tokens: each image as it was encoded, before any question.
    """
    prepared, tokens = list(prepared), list(tokens)
    waiting = [
        (i, image, encoded)
        for i, (image, encoded) in enumerate(zip(prepared, tokens, strict=True))
        if image is not None and encoded is not None and image.question is not None
    ]
    if waiting:
        asked, images, first = (
            [prompts[i] for i, _, _ in waiting],
            [[row[1]] for row in waiting],
            [[row[2]] for row in waiting],
        )
        refined = [row[0] for row in refine_images(engine.model, asked, [0] * len(asked), images, first)]
        for (i, _, _), image, encoded in zip(waiting, refined, encode_prepared(engine.model, refined), strict=True):
            prepared[i], tokens[i] = image, encoded
    return prepared, tokens


def row_seed(seed: int, index: int) -> int:
    """Derives the seed of a run's `index`-th answer from the run's seed, in [0, 2^32)."""
    return int.from_bytes(sha256(f"{seed}:{index}".encode()).digest()[:4], "big")


def generate(
    engine: ChatEngine,
    prompts: Sequence[Tensor],
    tokens: Sequence[ImageTokens | None],
    sampling: Sampling,
    seeds: Sequence[int] | None = None,
    longest: Sequence[int] | None = None,
) -> list[str | GenerationError]:
    """Generates the answers to a batch of prompts, in their order; of one that fails alone, the error.

    Args:
        engine: the model.
        prompts: int64 (L,) each, IMAGE_TOKEN_INDEX in the image's position.
        tokens: each prompt's image as the model's `encode_tokens` returns it; None for a prompt without an image.
        sampling: how answers are decoded.
        seeds: of sampled answers, each in [0, 2^32); None for 0.
        longest: most tokens of each answer; None for those of `sampling`.
    """
    seeds = [0] * len(prompts) if seeds is None else seeds
    longest = [sampling.max_new_tokens] * len(prompts) if longest is None else longest
    if sampling.num_beams > 1 and not sampling.greedy and len(prompts) > 1:
        # Sampled beams draw from the one global generator, so that neighbours would change what a row draws.
        singles = zip(prompts, tokens, seeds, longest, strict=True)
        return [generate(engine, [ids], [image], sampling, [seed], [most])[0] for ids, image, seed, most in singles]
    own = replace(sampling, stop=(*sampling.stop, *separators(engine.new_conversation())))
    answers: list[list[str]] = [[] for _ in prompts]
    rows = [
        Row(ids, replace(own, max_new_tokens=most, seed=seed), engine.tokenizer, engine.end_tokens, emit=pieces.append)
        for ids, seed, most, pieces in zip(prompts, seeds, longest, answers, strict=True)
    ]
    if sampling.num_beams == 1 and can_continue(engine.model):
        decode_rows(engine.model, rows, tokens)
    else:
        images = [image for image in tokens if image is not None]
        generate_rows(engine.model, rows, images, engine.padding_id)
    return [row.error or "".join(pieces).strip() for row, pieces in zip(rows, answers, strict=True)]
