"""An answer from a batch is the one that a chat gives alone."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from PIL import Image

from llava.eval.run import answerer as module
from llava.eval.run.answerer import Answerer, is_right, same_answer
from llava.mm_utils import tokenizer_image_token
from llava.model.vision.image_tokens import ImageTokens
from llava.serve.engine import ChatEngine
from llava.serve.engine.errors import PromptTooLongError
from llava.serve.engine.params import Sampling
from playground.scenes import PRESETS, scene

TEXTS = ("What is in the picture?", "How many objects are there?", "Is there a red circle?")


@pytest.mark.parametrize(
    ("said", "right", "equal"),
    [
        ("Red", "red", True),
        (" red. ", "red", True),
        ("a red circle", "A red circle.", True),
        ("red", "dark red", False),
        ("yes, it is", "yes", False),
        ("3.5", "35", False),
        ("", "red", False),
    ],
)
def test_answers_are_equal_but_for_case_blanks_and_a_full_stop(said: str, right: str, equal: bool) -> None:
    assert same_answer(said, right) is equal
    assert same_answer(right, said) is equal


LISTED = "What colour is it?\n(A) red\n(B) blue\nAnswer with the option's letter from the given choices directly."


@pytest.mark.parametrize(
    ("question", "said", "right", "judged"),
    [
        (LISTED, "A", "(A)", True),  # CV-Bench
        (LISTED, "(B) blue", "B", True),  # V* Bench
        (LISTED, "The answer is B.", "(B)", True),
        (LISTED, "blue", "(B)", True),
        (LISTED, "B", "blue", True),  # the right answer is an option's text
        (LISTED, "B", "(A)", False),
        (LISTED, "", "A", False),
        (LISTED, "purple", "(A)", False),
        (LISTED, "purple", "Purple.", True),  # the right answer is none of the options
        ("What is it?", "A", "(A)", False),  # no options are listed
        ("What is it?", "red", "Red.", True),
    ],
)
def test_where_the_question_lists_options_the_chosen_letter_decides(
    question: str, said: str, right: str, judged: bool
) -> None:
    assert is_right(question, said, right) is judged


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Scenes of two sizes, so that a batch is ragged."""
    return [
        Image.fromarray(scene(PRESETS[preset], 5, i).image) for i, preset in enumerate(("detail", "base", "detail"))
    ]


@pytest.fixture(scope="module")
def engine(either_engine: ChatEngine) -> ChatEngine:
    return either_engine


QLIP = pytest.mark.parametrize("either_engine", [True], ids=["qlip"], indirect=True)
"""For what does not depend on the tower."""


def encode(engine: ChatEngine, pictures: list[Image.Image]) -> list[ImageTokens]:
    with torch.inference_mode():
        return engine.model.encode_tokens(list(engine.prepare_images(pictures)))


@pytest.fixture(scope="module")
def alone(engine: ChatEngine, pictures: list[Image.Image]) -> dict[tuple[int, str], str]:
    """The oracle: each question asked in its own chat."""
    return {(i, text): engine.ask(text, [picture]) for i, picture in enumerate(pictures) for text in TEXTS}


@pytest.mark.parametrize("batch_tokens", [300, 100_000])
def test_an_answer_is_that_of_a_chat_whatever_its_batch(
    engine: ChatEngine, pictures: list[Image.Image], alone: dict[tuple[int, str], str], batch_tokens: int
) -> None:
    asked = random.Random(batch_tokens).sample(list(alone), len(alone))
    said = Answerer(engine, batch_tokens=batch_tokens).answer(encode(engine, pictures), asked)
    assert said == [alone[question] for question in asked]
    assert len(set(said)) > 3  # the pictures differ


@QLIP
@pytest.mark.parametrize("batch_tokens", [1, 300, 1000])
def test_no_batch_is_wider_than_allowed_and_none_smaller_than_needed(
    engine: ChatEngine, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch, batch_tokens: int
) -> None:
    shapes: list[tuple[int, int]] = []

    def generate(_: Any, ids: list[torch.Tensor], images: list[ImageTokens], sampling: Sampling) -> list[str]:
        lengths = [len(own) - 1 + len(image.features) for own, image in zip(ids, images, strict=True)]
        shapes.append((len(ids), max(lengths)))
        return [""] * len(ids)

    monkeypatch.setattr(module, "generate", generate)
    asked = [(owner, text) for owner in range(len(pictures)) for text in TEXTS]
    said = Answerer(engine, batch_tokens=batch_tokens).answer(encode(engine, pictures), asked)
    assert said == [""] * len(asked)
    assert sum(rows for rows, _ in shapes) == len(asked)
    assert all(rows == 1 or rows * width <= batch_tokens for rows, width in shapes)
    assert all((rows + 1) * width > batch_tokens for rows, width in shapes[:-1])


@QLIP
@pytest.mark.parametrize("spare", [0, -1])
def test_what_fits_the_context_is_what_a_chat_takes_and_the_rest_is_refused_before_anything_is_computed(
    engine: ChatEngine, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch, spare: int
) -> None:
    (picture,) = encode(engine, pictures[:1])
    visual = picture.span.context
    text = len(tokenizer_image_token(engine.question("What?", 1).get_prompt(), engine.tokenizer)) - 1
    monkeypatch.setattr(engine, "context_len", text + visual + 16 + spare)
    greedy, answerer = Sampling(temperature=0.0, max_new_tokens=16), Answerer(engine, max_new_tokens=16)
    if spare == 0:
        assert answerer.answer([picture], [(0, "What?")]) == [engine.ask("What?", pictures[:1], greedy)]
        return
    monkeypatch.setattr(engine.model, "forward", lambda *_, **__: pytest.fail("nothing may be computed"))
    words = f"{text} text tokens, {visual} positions of images and an answer of up to 16 exceed the model's"
    with pytest.raises(PromptTooLongError, match=words):
        answerer.answer([picture], [(0, "What?")])
    with pytest.raises(ValueError, match=words):
        engine.ask("What?", pictures[:1], greedy)
