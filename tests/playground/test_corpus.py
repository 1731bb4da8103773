"""The text-only corpus: descriptions that agree with their scenes, in the format of stage 2, up to 512 tokens."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llava.conversation import conv_templates
from llava.model.loading.tokenizer import load_tokenizer
from playground import corpus
from playground.corpus import (
    PIECES,
    STYLES,
    WINDOW,
    Corpus,
    Imagined,
    describe_by_listing,
    describe_by_places,
    describe_by_table,
    document,
    imagine,
    repetition,
    sentences,
)
from playground.objects import COLOURS, SHAPES, SceneObject, Sign
from playground.pretraining import LanguageStage, Sources
from playground.schedules import Schedule
from playground.signs import WORDS
from playground.vocabulary import prompt, train_vocabulary

MADE = Imagined(
    (SceneObject("red", "circle", (21.0, 91.0), 14.0), SceneObject("blue", "square", (77.0, 7.0), 15.0)),
    Sign("stop", (49.0, 49.0), (14, 14), 12),
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava-vocabulary")
    train_vocabulary(folder, sentences(300), PIECES)
    return load_tokenizer(folder)


def text_of(seed: int) -> str:
    return "".join(piece.text for piece in document(np.random.default_rng(seed)))


def test_descriptions_by_hand():
    rng = np.random.default_rng(0)
    assert describe_by_listing(MADE, rng) == (
        "The picture shows a blue square, a sign that says stop and a red circle."
    )
    places = describe_by_places(MADE, rng)
    assert places.startswith("In the picture there is ") and places.endswith(".")
    assert set(places.removeprefix("In the picture there is ").rstrip(".").split("; ")) == {
        "a red circle in row 2, column 7",
        "a blue square in row 6, column 1",
        "a sign in row 4, column 4 that says stop",
    }
    assert describe_by_table(MADE, rng) == (
        "The picture has row 2: red circle 7; row 4: sign that says stop 4; row 6: blue square 1."
    )
    assert describe_by_table(Imagined((), None), rng) == "The picture has nothing."


def test_conversations_are_those_of_stage_2():
    system = conv_templates["v1"].system
    texts = [text_of(seed) for seed in range(60)]
    conversations = [text for text in texts if text.startswith(system)]
    assert 40 < len(conversations) < 60
    assert all(re.fullmatch(r"( USER: [^:]+.* ASSISTANT: [^<]+</s>(?=USER|$)|USER: .*? ASSISTANT: [^<]+</s>)+",
                            text.removeprefix(system)) for text in conversations)  # fmt: skip
    assert all(text.count("USER:") == text.count("</s>") for text in conversations)


def test_answers_about_a_listing_follow_from_its_text():
    checked = 0
    for seed in range(200):
        text = text_of(seed)
        if "USER: The picture shows " not in text:
            continue
        listing = re.search(r"The picture shows (.*?)\.", text)[1]
        present = re.findall(rf"a ((?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)}))", listing)
        for name, answer in re.findall(r"(?:Is there|Can you see) a (\w+ \w+)[^:]*\? ASSISTANT: (\w+)<", text):
            assert answer == ("yes" if name in present else "no")
            checked += 1
    assert checked > 15


def test_windows_hold_documents_from_their_beginnings(tokenizer):
    batch = Corpus(tokenizer).batch(3, np.random.default_rng(1))
    assert {array.shape for array in batch} == {(3, WINDOW)}
    starts = batch.positions == 0
    assert (batch.ids[starts] == tokenizer.bos_token_id).all()
    assert np.array_equal(np.cumsum(starts, axis=1) - 1, batch.documents)
    answers = tokenizer.decode(batch.ids[0][batch.answers[0]])
    assert "USER" not in answers and "row" not in answers
    assert 0.03 < batch.answers.mean() < 0.5


def test_some_documents_reach_the_windows_end(tokenizer):
    lengths = [len(tokenizer(text_of(seed)).input_ids) for seed in range(150)]
    assert max(lengths) > 450
    assert np.median(lengths) < 300


def test_every_style_occurs_and_no_image_token():
    rng = np.random.default_rng(0)
    texts = [text_of(seed) for seed in range(80)]
    openings = ("The picture shows", "In the picture there is", "The picture has", "Picture 1:")
    assert all(any(f"USER: {opening}" in text for text in texts) for opening in openings)
    assert len(STYLES) == len(openings) + 1
    assert not any("<image>" in text for text in texts)
    assert len({len(imagine(rng).objects) for _ in range(60)}) == 6


def test_a_repetition_says_its_text_again_and_the_first_time_is_no_target():
    said = set()
    for seed in range(40):
        first, again = repetition(np.random.default_rng(seed))
        times = (first.text + again.text).removesuffix("\n").split(". ")
        assert {text.removesuffix(".") for text in times} == {first.text.removesuffix(".")}
        assert (first.is_target, again.is_target) == (False, True)
        said.add(len(times))
    assert said == {2, 3, 4, 5}


def test_windows_of_repetitions_alone_hold_no_prompt(tokenizer):
    batch = Corpus(tokenizer).batch(2, np.random.default_rng(1), repetitions=1.0)
    assert "USER" not in tokenizer.decode(batch.ids.flatten())
    assert batch.answers.mean() > 0.5


def test_words_of_scenes_and_signs_are_single_pieces(tokenizer):
    words = [*COLOURS, *SHAPES, *WORDS, "sign", "none", "nothing", "row", "column", "left", "right", "yes", "no"]
    assert [word for word in words if tokenizer.tokenize(word) != [f"▁{word}"]] == []
    assert tokenizer.tokenize("345") == ["▁", "3", "4", "5"]


def test_the_prompt_needs_no_bytes_but_for_its_line_break(tokenizer):
    pieces = [piece for part in prompt("What does the sign say?") for piece in tokenizer.tokenize(part)]
    assert [piece for piece in pieces if piece.startswith("<0x")] == ["<0x0A>"]


def test_sentences_hold_no_special_tokens():
    assert not any(corpus.conv_templates["v1"].sep2 in text or "\n" in text for text in sentences(20))


@pytest.mark.parametrize(("steps", "alone"), [(6000, 600), (1500, 300), (100, 100)])
def test_a_stage_begins_with_repetitions_alone_long_enough_to_teach_them(steps, alone):
    """A tenth of its steps, and in a shorter stage at least 300."""
    asked = []
    corpus = SimpleNamespace(batch=lambda size, rng, repetitions: asked.append(repetitions))
    sources = Sources(corpus, None, None, 0, torch.device("cpu"))
    stage = LanguageStage(SimpleNamespace(decoder=None), sources, Schedule(steps=steps, rate=1e-3))
    for step in range(steps):
        stage.draw(step)
    assert asked == [1.0] * alone + [0.1] * (steps - alone)
