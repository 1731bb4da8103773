"""An answer is its prompt's own, whatever else is in the batch: greedy, by beams, or sampled."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image

from llava.eval.run.generate import generate, prompt_ids, row_seed
from llava.model.vision.image_tokens import ImageTokens
from llava.serve.engine import ChatEngine
from llava.serve.engine.params import Sampling
from playground.scenes import PRESETS, scene

TEXTS = ("What is in the picture?", "How many objects are there?")


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [Image.fromarray(scene(PRESETS[preset], 8, i).image) for i, preset in enumerate(("detail", "base"))]


Prompt = tuple[torch.Tensor, ImageTokens | None, int]
"""Token ids, image and seed."""


def run(engine: ChatEngine, prompts: list[Prompt], sampling: Sampling) -> list[str]:
    """The answers to a batch."""
    ids, pictures, seeds = zip(*prompts, strict=True)
    return generate(engine, ids, pictures, sampling, seeds)


@pytest.fixture(scope="module")
def prompts(engine: ChatEngine, pictures: list[Image.Image]) -> list[Prompt]:
    with torch.inference_mode():
        encoded = engine.model.encode_tokens(list(engine.prepare_images(pictures)))
    rows = [(prompt_ids(engine, text), image) for image in encoded for text in TEXTS]
    without = (prompt_ids(engine, "What is in the picture?", 0), None)
    return [(ids, image, row_seed(3, i)) for i, (ids, image) in enumerate([*rows, without])]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(0.0, max_new_tokens=8),
        Sampling(0.0, num_beams=3, max_new_tokens=8),
        Sampling(4.0, top_p=0.99, max_new_tokens=12),
        Sampling(20.0, num_beams=2, max_new_tokens=8),
    ],
    ids=["greedy", "beams", "nucleus", "sampled beams"],
)
def test_an_answer_does_not_depend_on_its_batch(engine: ChatEngine, prompts: list[Prompt], sampling: Sampling) -> None:
    alone = [run(engine, [prompt], sampling)[0] for prompt in prompts]
    assert run(engine, prompts[::-1], sampling) == alone[::-1]
    assert len(set(alone)) > 3


def test_greedy_and_beams_are_those_of_a_chat(
    engine: ChatEngine, prompts: list[Prompt], pictures: list[Image.Image]
) -> None:
    for sampling in (Sampling(0.0, max_new_tokens=8), Sampling(0.0, num_beams=3, max_new_tokens=8)):
        asked = [engine.ask(text, [picture], sampling) for picture in pictures for text in TEXTS]
        assert run(engine, prompts[:-1], sampling) == asked


def test_another_seed_samples_another_answer_and_a_narrow_nucleus_is_greedy(
    engine: ChatEngine, prompts: list[Prompt]
) -> None:
    ids, picture, _ = prompts[0]
    drawn = [generate(engine, [ids], [picture], Sampling(2.0, max_new_tokens=12), [seed]) for seed in (1, 3)]
    assert drawn[0] != drawn[1]
    greedy = run(engine, prompts, Sampling(0.0, max_new_tokens=12))
    assert run(engine, prompts, Sampling(1.0, top_p=1e-6, max_new_tokens=12)) == greedy


def test_a_row_ends_at_a_stop_string_and_the_others_continue(engine: ChatEngine, prompts: list[Prompt]) -> None:
    greedy = run(engine, prompts, Sampling(0.0, max_new_tokens=12))
    word = greedy[0].split()[1]
    stopped = run(engine, prompts, Sampling(0.0, max_new_tokens=12, stop=(word,)))
    assert stopped == [text.split(word)[0].strip() for text in greedy]
    assert stopped[0] and any(text == whole for text, whole in zip(stopped, greedy, strict=True))


def test_seeds_of_rows_differ_by_run_and_by_place() -> None:
    seeds = {row_seed(seed, index) for seed in range(3) for index in range(100)}
    assert len(seeds) == 300
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_sampled_beams_are_those_of_their_seed_in_a_chat_too(engine: ChatEngine, pictures: list[Image.Image]) -> None:
    """They draw from torch's global generator, which is left as it was."""
    sampling = Sampling(20.0, num_beams=2, max_new_tokens=8, seed=7)
    state = torch.random.get_rng_state()
    said = {engine.ask(TEXTS[0], pictures[:1], sampling) for _ in range(2)}
    assert len(said) == 1
    assert torch.equal(torch.random.get_rng_state(), state)
    assert engine.ask(TEXTS[0], pictures[:1], replace(sampling, seed=8)) not in said
