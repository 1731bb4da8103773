"""Answers are those of transformers' `generate`; what prompts share runs once, and ended answers cost nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from llava.constants import IMAGE_TOKEN_INDEX
from llava.eval.run.decode import Start, decode_rows, is_worth_sharing
from llava.eval.run.generate import prompt_ids
from llava.model.builder import load_pretrained_model
from llava.model.vision.image_tokens import ImageTokens
from llava.serve.engine import ChatEngine
from llava.serve.engine.generate import Row, generate_rows
from llava.serve.engine.params import Sampling
from playground.scenes import PRESETS, scene
from tests.llava.checkpoints import IMAGE_TOKEN
from tests.llava.model.language_models import PIXELS, PROMPT, make_oracle, write_checkpoint

TEXTS = ("What is in the picture?", "How many objects are there?", "Is there a red circle?", "What color is the ring?")
GREEDY = Sampling(0.0, max_new_tokens=12)


@pytest.fixture(scope="module")
def encoded(either_engine: ChatEngine) -> list[ImageTokens]:
    """Two images; by the quadtree they differ in tokens, positions and weights."""
    images = [Image.fromarray(scene(PRESETS[preset], 8, i).image) for i, preset in enumerate(("detail", "base"))]
    with torch.inference_mode():
        return either_engine.model.encode_tokens(list(either_engine.prepare_images(images)))


def make_rows(engine: ChatEngine, texts: list[str], images: list[Any], sampling: Sampling) -> list[Row]:
    prompts = [prompt_ids(engine, text, int(image is not None)) for text, image in zip(texts, images, strict=True)]
    return [Row(ids, sampling, engine.tokenizer, engine.end_tokens) for ids in prompts]


def note_tokens(rows: list[Row]) -> list[list[int]]:
    """The tokens of each row, filled in as it takes them."""
    noted: list[list[int]] = [[] for _ in rows]
    for row, tokens in zip(rows, noted, strict=True):
        take = row.take
        row.take = lambda token, _, take=take, tokens=tokens: (tokens.append(token), take(token))
    return noted


def decode(engine: ChatEngine, texts: list[str], images: list[Any], sampling: Sampling = GREEDY) -> list[list[str]]:
    """The pieces of each answer, here and by transformers' `generate`."""
    found = []
    for ours in (True, False):
        rows, said = make_rows(engine, texts, images, sampling), [[] for _ in texts]
        for row, pieces in zip(rows, said, strict=True):
            row.emit = pieces.append
        if ours:
            decode_rows(engine.model, rows, images)
        else:
            generate_rows(engine.model, rows, [image for image in images if image is not None], engine.padding_id)
        found.append([(pieces, row.generated, row.finish_reason) for row, pieces in zip(rows, said, strict=True)])
    assert found[0] == found[1]
    return [pieces for pieces, _, _ in found[0]]


def test_answers_are_those_of_transformers_generate(either_engine: ChatEngine, encoded: list[ImageTokens]) -> None:
    one, other = encoded
    same = decode(either_engine, [*TEXTS, *TEXTS], [one] * 4 + [other] * 4)
    mixed = decode(either_engine, [*TEXTS, *TEXTS], [one, other] * 4)
    bare = decode(either_engine, [*TEXTS[:2], TEXTS[0]], [one, one, None])
    assert len({tuple(pieces) for pieces in (*same, *mixed, *bare)}) > 4


@pytest.mark.parametrize("penalty", [None, 1.3])
def test_a_row_samples_by_its_seed_and_penalty_after_others_have_left(
    either_engine: ChatEngine, encoded: list[ImageTokens], penalty: float | None
) -> None:
    sampling = Sampling(1.5, top_p=0.9, max_new_tokens=16, seed=5, repetition_penalty=penalty)
    said = decode(either_engine, [*TEXTS] * 2, [encoded[0]] * 4 + [encoded[1]] * 4, sampling)
    assert len({len(pieces) for pieces in said}) > 1  # so rows leave at different tokens


def test_what_prompts_share_runs_once_and_ended_answers_leave(
    either_engine: ChatEngine, encoded: list[ImageTokens]
) -> None:
    engine, shapes = either_engine, []
    rows = make_rows(engine, [*TEXTS] * 2, [encoded[0]] * 4 + [encoded[1]] * 4, GREEDY)
    layer = engine.model.model.layers[0]
    handle = layer.register_forward_pre_hook(lambda _, arguments: shapes.append(tuple(arguments[0].shape[:2])))
    decode_rows(engine.model, rows, [encoded[0]] * 4 + [encoded[1]] * 4)
    handle.remove()
    before = int((rows[0].prompt < 0).nonzero()[0, 0])  # text tokens before the image
    after = max(len(row.prompt) for row in rows) - before - 1
    assert shapes[:2] == [(2, before + max(len(image.features) for image in encoded)), (8, after)]
    lengths = sorted(row.generated for row in rows)
    steps = [batch for batch, _ in shapes[2:]]
    assert len(steps) == lengths[-1] - 1
    assert all(width == 1 for _, width in shapes[2:])
    assert steps == [sum(length > step for length in lengths) for step in range(1, lengths[-1])]


@pytest.mark.parametrize("kind", ["mistral, window", "qwen2, window", "mpt"])
def test_windows_count_the_tokens_of_each_row_alone(tmp_path: Path, kind: str) -> None:
    """They are shorter than the prompts, which differ in length; transformers' own model answers each alone."""
    oracle = make_oracle(kind)
    tokenizer, model = load_pretrained_model(write_checkpoint(tmp_path, kind, oracle), device="cpu")[:2]
    (image,), image_at = model.encode_tokens(PIXELS[:1]), PROMPT.index(IMAGE_TOKEN_INDEX)
    prompts = [PROMPT[: image_at + 2 + more] + [40] * more for more in (0, 1, 1, 0)]
    rows = [Row(torch.tensor(ids), Sampling(0.0, max_new_tokens=6), tokenizer, frozenset()) for ids in prompts]
    streams = note_tokens(rows)
    decode_rows(model, rows, [image] * len(rows))
    for ids, tokens in zip(prompts, streams, strict=True):
        long = torch.tensor([[*ids[:image_at], *[IMAGE_TOKEN] * 64, *ids[image_at + 1 :]]])
        expected = oracle.generate(
            input_ids=long,
            attention_mask=torch.ones_like(long),
            pixel_values=PIXELS[:1],
            do_sample=False,
            max_new_tokens=6,
            min_new_tokens=6,
            pad_token_id=0,
        )
        assert tokens == expected[0, long.shape[1] :].tolist()


def test_starts_are_run_apart_where_that_saves_a_fifth_of_the_tokens() -> None:
    one, other, none = Start(5, 8, "a"), Start(5, 10, "b"), Start()
    assert not is_worth_sharing([one, other], [10, 12])  # nothing is shared
    assert is_worth_sharing([one, other, one, one], [10, 12, 10, 9])  # 2 x 10 + 4 x 2 of 4 x 12
    assert not is_worth_sharing([one, one], [10, 22])  # 8 + 2 x 14 of 2 x 22
    assert is_worth_sharing([one, one, one, none], [10, 10, 10, 2])
    assert not is_worth_sharing([one, one, one, none], [10, 10, 10, 10])  # the last one runs in full in any case
    assert not is_worth_sharing([none, none], [3, 4])
