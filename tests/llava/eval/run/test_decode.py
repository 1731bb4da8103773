"""Answers are those of transformers' `generate`; what prompts share runs once, and ended answers cost nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from llava.eval.run.decode import Prompt, can_decode, decode_rows, lay_out
from llava.eval.run.generate import prompt_ids
from llava.model.vision.image_tokens import ImageTokens
from llava.serve.engine import ChatEngine
from llava.serve.engine.generate import Row, generate_rows
from llava.serve.engine.params import Sampling
from playground.scenes import PRESETS, scene
from qlip.language_positions import Placed

TEXTS = ("What is in the picture?", "How many objects are there?", "Is there a red circle?", "What color is the ring?")
GREEDY = Sampling(0.0, max_new_tokens=24)


@pytest.fixture(scope="module")
def encoded(either_engine: ChatEngine) -> list[ImageTokens]:
    """Two images; by the quadtree they differ in tokens, positions and weights."""
    images = [Image.fromarray(scene(PRESETS[preset], 8, i).image) for i, preset in enumerate(("detail", "base"))]
    with torch.inference_mode():
        return either_engine.model.encode_tokens(list(either_engine.prepare_images(images)))


def make_rows(engine: ChatEngine, texts: list[str], images: list[Any], sampling: Sampling) -> list[Row]:
    prompts = [prompt_ids(engine, text, int(image is not None)) for text, image in zip(texts, images, strict=True)]
    return [Row(ids, sampling, engine.tokenizer, engine.end_tokens) for ids in prompts]


def decode(engine: ChatEngine, texts: list[str], images: list[Any], sampling: Sampling = GREEDY) -> list[list[str]]:
    """The pieces of each answer, here and by transformers' `generate`."""
    found = []
    for ours in (True, False):
        rows, said = make_rows(engine, texts, images, sampling), [[] for _ in texts]
        for row, pieces in zip(rows, said, strict=True):
            row.emit = pieces.append
        if ours:
            assert can_decode(engine.model, rows)
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
    for step, batch in enumerate(steps, start=1):  # the rows that still answer, and few that have ended
        alive = sum(length > step for length in lengths)
        assert alive <= batch < max(alive + 1, alive / 0.75 + 1)


def place(text: int, image: int, rest: int, key: str) -> Prompt:
    """A prompt whose embeddings are its positions."""
    total = text + image + rest
    numbers = torch.arange(total)
    sizes = torch.ones(total)
    sizes[text : text + image] = 2.0
    return Prompt(numbers[:, None].float(), Placed(numbers, sizes, torch.tensor(total)), text + image, key)


def test_the_layout_of_four_prompts_by_hand() -> None:
    batch = lay_out([place(1, 2, 1, "a"), place(1, 3, 2, "b")], "sdpa")
    assert batch.width == 0  # nothing is shared
    batch = lay_out([place(1, 4, 1, "a"), place(1, 5, 2, "b"), place(1, 4, 2, "a"), place(1, 4, 1, "a")], "sdpa")
    assert batch.width == 6 and batch.groups.tolist() == [0, 1, 0, 0] and batch.leaders.tolist() == [0, 1]
    assert batch.mask.tolist() == [
        [0, 1, 1, 1, 1, 1, 0, 1],
        [1, 1, 1, 1, 1, 1, 1, 1],
        [0, 1, 1, 1, 1, 1, 1, 1],
        [0, 1, 1, 1, 1, 1, 0, 1],
    ]
    assert batch.positions[0].tolist() == [0, 0, 1, 2, 3, 4, 0, 5]
    assert batch.embeds[2, :, 0].tolist() == [0, 0, 1, 2, 3, 4, 5, 6]
    four = torch.tensor(4.0).log()
    assert batch.bias is not None
    torch.testing.assert_close(batch.bias[0], four * torch.tensor([0.0, 0, 1, 1, 1, 1, 0, 0]))


def test_what_only_transformers_generate_can_do_is_left_to_it(engine: ChatEngine) -> None:
    def fits(sampling: Sampling = GREEDY, generation: Any = None, **changes: Any) -> bool:
        config = {"_attn_implementation": "sdpa", "sliding_window": None, "layer_types": None, **changes}
        config = SimpleNamespace(**config)
        config.get_text_config = lambda: config
        model = SimpleNamespace(config=config, generation_config=SimpleNamespace(**(generation or {})))
        return can_decode(model, [SimpleNamespace(sampling=sampling)])

    assert fits() and fits(sliding_window=None, _attn_implementation="eager")
    assert not fits(Sampling(0.0, num_beams=2)) and not fits(Sampling(0.0, logprobs=2))
    assert not fits(_attn_implementation="flash_attention_2") and not fits(sliding_window=4096)
    assert not fits(generation={"no_repeat_ngram_size": 3}) and fits(generation={"no_repeat_ngram_size": 0})
    for shaped in ({"exponential_decay_length_penalty": (4, 1.5)}, {"watermarking_config": {"bias": 2.0}}):
        assert not fits(generation=shaped)
    assert not fits(generation={"forced_eos_token_id": 0}) and not fits(generation={"guidance_scale": 0.5})
    neutral = {"forced_eos_token_id": None, "guidance_scale": 1.0, "min_length": 0, "remove_invalid_values": False}
    assert fits(generation=neutral)
