"""A corpus of text alone, about scenes that nobody draws: what the small language model is pretrained on.

A document describes one scene or several, by a listing, by the objects' places, or by a table of its rows; then come
questions and answers. Documents follow each other in windows of 512 tokens; the longest fill a window, so that all
distances up to there occur. There are no image tokens, and nothing is left out of a description.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from llava.conversation import conv_templates
from llava.train.data.labels import PromptPiece, build_pieces, encode_pieces
from playground.dialogue import ask, choose_kinds, full_listing
from playground.objects import SceneObject, Sign
from playground.placement import place_objects
from playground.presets import TRAINING
from playground.questions import Question
from playground.scenes import CELL, SIGN_LABEL, cell_labels, choose_names, label_of
from playground.signs import WORDS, choose_text

WINDOW = 512
"""Tokens of a training window."""
PIECES = 704
"""Pieces of the vocabulary, the 256 bytes and three special tokens included."""
VOCABULARY_DOCUMENTS = 1500
"""Documents that the vocabulary is learnt from."""
SIDE = TRAINING.size
PLATE = (20, 46)
"""(height, width) in pixels of the plates in imagined scenes."""
STYLES = ("listing", "places", "table", "caption", "album")
"""Kinds of documents."""
SHARES = (0.2, 0.25, 0.25, 0.1, 0.2)
REPEATS = (2, 5)
"""Least and greatest number of times that a document of repetitions says its text."""
DIALOGUE_TURNS = (4, 14)
"""Least and greatest number of questions about a described scene; many, since only answers can be learnt."""


@dataclass(frozen=True)
class Imagined:
    """What is in a scene that is not drawn."""

    objects: tuple[SceneObject, ...]
    sign: Sign | None


def imagine(rng: np.random.Generator) -> Imagined:
    """Makes up a scene like those of the training pictures."""
    count = int(rng.integers(TRAINING.objects[0], TRAINING.objects[1] + 1))
    names = choose_names(count, rng)
    has_sign = rng.random() < TRAINING.sign_share
    centres, sizes, place = place_objects(count, TRAINING, (SIDE, SIDE), rng, PLATE if has_sign else None)
    objects = tuple(
        SceneObject(colour, shape, centre, size)
        for (colour, shape), centre, size in zip(names, centres, sizes, strict=True)
    )
    if place is None:
        return Imagined(objects, None)
    readable = rng.random() >= TRAINING.unreadable_share
    return Imagined(objects, Sign(choose_text(rng), place, PLATE, 12, readable))


def document(rng: np.random.Generator) -> list[PromptPiece]:
    """Writes a document as pieces of text, of which the answers are targets.

    A conversation has the format of the prompts that LLaVA's second stage is trained on.
    """
    style = str(rng.choice(STYLES, p=SHARES))
    if style == "caption":
        made = imagine(rng)
        return [PromptPiece(f"{full_listing(made.objects, made.sign)}\n", True)]
    if style == "album":
        return _album(rng)
    made = imagine(rng)
    describe = {"listing": describe_by_listing, "places": describe_by_places, "table": describe_by_table}[style]
    kinds = choose_kinds(made.sign, rng, DIALOGUE_TURNS)
    asked = [ask(kind, made.objects, made.sign, SIDE, rng) for kind in kinds]
    return _conversation(describe(made, rng), asked)


def repetition(rng: np.random.Generator) -> list[PromptPiece]:
    """Writes a document that says a listing several times; each time but the first is a target."""
    made = imagine(rng)
    text = full_listing(made.objects, made.sign)
    again = int(rng.integers(REPEATS[0], REPEATS[1] + 1)) - 1
    return [PromptPiece(f"{text}.", False), PromptPiece(again * f" {text}." + "\n", True)]


def describe_by_listing(made: Imagined, rng: np.random.Generator) -> str:
    """Lists a scene from left to right."""
    return f"The picture shows {full_listing(made.objects, made.sign)}."


def describe_by_places(made: Imagined, rng: np.random.Generator) -> str:
    """Names each object with the row and column of its centre, in any order."""
    items = [f"a {item.name} in row {_cell(item.centre[0])}, column {_cell(item.centre[1])}" for item in made.objects]
    if made.sign is not None:
        where = f"in row {_cell(made.sign.centre[0])}, column {_cell(made.sign.centre[1])}"
        items.append(f"a sign {where} {_saying(made.sign)}".rstrip())
    order = rng.permutation(len(items))
    return f"In the picture there is {'; '.join(items[at] for at in order) or 'nothing'}."


def describe_by_table(made: Imagined, rng: np.random.Generator) -> str:
    """Goes through the picture's cells by row and column, and names what each holds, if anything."""
    labels = cell_labels(made.objects, SIDE, sign=made.sign)
    names = {1 + label_of(item): item.name for item in made.objects}
    if made.sign is not None:
        names[SIGN_LABEL] = f"sign {_saying(made.sign)}".rstrip()
    rows = [
        f"row {row + 1}: " + ", ".join(f"{names[label]} {col + 1}" for col, label in enumerate(line) if label)
        for row, line in enumerate(labels.tolist())
        if any(line)
    ]
    return f"The picture has {'; '.join(rows) or 'nothing'}."


def _saying(sign: Sign) -> str:
    return f"that says {sign.text}" if sign.readable else ""


def _cell(place: float) -> int:
    return int(place // CELL) + 1


def _album(rng: np.random.Generator) -> list[PromptPiece]:
    """Describes two to five scenes, each with a number, and questions about one or the other."""
    scenes = [imagine(rng) for _ in range(rng.integers(2, 6))]
    describe = (describe_by_listing, describe_by_places)[rng.integers(2)]
    text = " ".join(f"Picture {number + 1}: {describe(made, rng)}" for number, made in enumerate(scenes))
    asked = []
    for _ in range(rng.integers(DIALOGUE_TURNS[0], DIALOGUE_TURNS[1] + 1)):
        number = int(rng.integers(len(scenes)))
        made = scenes[number]
        item = ask(choose_kinds(made.sign, rng, (1, 1))[0], made.objects, made.sign, SIDE, rng)
        asked.append(Question(item.kind, f"Picture {number + 1}: {item.text}", item.answer))
    return _conversation(text, asked)


def _conversation(opening: str, asked: list[Question]) -> list[PromptPiece]:
    turns = []
    for number, item in enumerate(asked):
        turns.append({"from": "human", "value": f"{opening} {item.text}" if number == 0 else item.text})
        turns.append({"from": "gpt", "value": item.answer})
    return build_pieces(turns, conv_templates["v1"])


def sentences(count: int = VOCABULARY_DOCUMENTS) -> Iterator[str]:
    """Yields what the vocabulary is learnt from: documents without special tokens, and each word of signs."""
    for index in range(count):
        text = "".join(piece.text for piece in document(np.random.default_rng((index, 5))))
        yield from text.replace("\n", "</s>").split("</s>")
    for word in WORDS:
        yield from itertools.repeat(f"a sign that says {word} and", 100)


class TextBatch(NamedTuple):
    """Windows of text: B of T tokens."""

    ids: np.ndarray
    """int64 (B, T)."""
    answers: np.ndarray
    """bool (B, T): whether a token is of an answer."""
    documents: np.ndarray
    """int64 (B, T): number of the token's document within its window."""
    positions: np.ndarray
    """int64 (B, T): place of the token in its document."""


class Corpus:
    """Windows of documents, one after the other, each written when it is asked for."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, window: int = WINDOW) -> None:
        self.tokenizer, self.window = tokenizer, window

    def batch(self, size: int, rng: np.random.Generator, repetitions: float = 0.0) -> TextBatch:
        """Writes `size` windows; the last document of each is cut at its end.

        Args:
            size: B.
            rng: source of the documents.
            repetitions: share of the documents that are repetitions.
        """
        columns = zip(*(self._window(rng, repetitions) for _ in range(size)), strict=True)
        return TextBatch(*(np.stack(column) for column in columns))

    def _window(self, rng: np.random.Generator, repetitions: float) -> TextBatch:
        """Writes one window; its arrays have one dimension."""
        parts: list[TextBatch] = []
        while sum(len(part.ids) for part in parts) < self.window:
            pieces = repetition(rng) if rng.random() < repetitions else document(rng)
            encoded = encode_pieces(pieces, self.tokenizer, has_image=False)
            places = np.arange(len(encoded.input_ids))
            number = np.full_like(places, len(parts))
            parts.append(TextBatch(encoded.input_ids, encoded.labels >= 0, number, places))
        return TextBatch(*(np.concatenate(column)[: self.window] for column in zip(*parts, strict=True)))
