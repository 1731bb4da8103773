"""Reads the benchmarks' question files: LLaVA's JSON lines, ScienceQA's JSON, MMBench's table.

Images are named here, not opened. The prompt that an answer's row repeats is not always all of the text that the model
gets.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.eval.score.option_lists import LETTER_ONLY
from llava.eval.score.rows import (
    Row,
    decode_json,
    id_text,
    is_question,
    read_json_lines,
    read_text,
)
from llava.eval.score.tables import OPTION_COLUMNS, find_row_options, is_missing, read_table
from llava.text import check_encodable

T = TypeVar("T")

TABLE_COLUMNS = ("index", "image", "question", "hint", *OPTION_COLUMNS)
SHORTEST_BASE64 = 64
"""A shorter image field of a table is the index of the row that holds the image."""


@dataclass(frozen=True)
class Question:
    """A question about an image or about none, as a question file has it."""

    question_id: int | str
    prompt: str
    """The question as the answer's row repeats it."""
    text: str
    """The question as the model gets it, after the image."""
    image: str | Path | None
    """A file, or a `data:` URL; None for a question without an image."""
    image_name: str | None = None
    """The image's name in the question file; a hash for an image inside the file itself."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """More fields of the answer's row."""
    index: int = 0
    """Position in the question file; a question_id may occur twice there."""
    answer: str | None = None
    """The right answer, where it is known."""
    category: str = "all"

    @property
    def text_hash(self) -> str:
        """Identifies the text that the model gets, of which `prompt` may be a part."""
        return short_hash(sha256(self.text.encode()))


def short_hash(digest: Any) -> str:
    """Formats a digest of SHA-256 by its first 16 characters, which distinguish images and texts well enough."""
    return f"sha256:{digest.hexdigest()[:16]}"


def read_lines(path: Path, folder: Path, answers_file: Path | None = None, with_answers: bool = True) -> list[Question]:
    """Reads JSON lines of `question_id, image, text` and, if known, `category` and `answer`.

    Args:
        path: the questions; an image is a file in `folder`, or a `data:` URL.
        folder: the images.
        answers_file: right answers as `question_id, answer` (or `label`, or `text`), for question files without them.
        with_answers: whether right answers are needed; False passes over them, of whatever type they are.

    Raises:
        ValueError: a line is not a question, a question has none or several answers in the answers file, or there are
            no questions.
    """
    answers = _read_right_answers(answers_file) if answers_file else {}
    questions = []
    for number, row in read_json_lines(path):
        if missing := [key for key in ("question_id", "image", "text") if key not in row]:
            raise ValueError(f"{path}:{number}: the question has no {', '.join(missing)}")
        name, text, image = (_read_value(f"{path}:{number}", row, key) for key in ("question_id", "text", "image"))
        if not image:
            raise ValueError(f"{path}:{number}: image is empty; it must name a file, or be a data: URL")
        if answers_file and id_text(name) not in answers:
            raise ValueError(f"{answers_file} has no answer to question {name!r}")
        answer = answers.get(id_text(name))
        if with_answers and not answers_file:
            answer = _read_own_answer(f"{path}:{number}", row)
        questions.append(
            Question(
                name,
                prompt=text,
                text=text,
                image=find_image(folder, image),
                image_name=name_image(image),
                index=len(questions),
                answer=answer,
                category=str(row.get("category", "all")),
            )
        )
    if not questions:
        raise ValueError(f"{path} holds no questions")
    return questions


def find_image(folder: Path, image: str) -> str | Path:
    """Finds the image that a question file names: a file in a folder, or the `data:` URL itself."""
    return image if is_data_url(image) else folder / image


def name_image(image: str) -> str:
    """Names an image in an answer's row: by its file, or by a hash where the question file holds the image."""
    return short_hash(sha256(image.encode())) if is_data_url(image) else image


def is_data_url(image: str) -> bool:
    """Whether a question file holds the image itself."""
    return image[:5].lower() == "data:"


def _read_right_answers(path: Path) -> dict[str, str]:
    """Reads the right answer of each question, by its id as text; it may have several rows if they agree."""
    answers: dict[str, str] = {}
    for number, row in read_json_lines(path):
        place = f"{path}:{number}"
        field = _find_field(row, "answer", "label", "text")
        if "question_id" not in row or field is None:
            raise ValueError(f"{place}: an answer needs question_id and answer, label or text")
        if field == "text" and is_question(row):
            raise ValueError(f"{place} is a question, not an answer: it has no answer or label")
        name, answer = _read_value(place, row, "question_id"), id_text(_read_value(place, row, field, number=True))
        if (other := answers.setdefault(id_text(name), answer)) != answer:
            raise ValueError(f"{place}: {name!r} appears twice, with the answers {other!r} and {answer!r}")
    return answers


def _read_own_answer(place: str, row: Row) -> str | None:
    """Reads the right answer that a question's row holds; None where it holds none."""
    field = _find_field(row, "answer", "label")
    if field is None or row[field] == "":
        return None
    return id_text(_read_value(place, row, field, number=True))


def _find_field(row: Row, *names: str) -> str | None:
    """Finds the first of these fields that holds something."""
    return next((name for name in names if row.get(name) is not None), None)


def _read_value(place: str, row: Row, key: str, number: bool = False) -> Any:
    """Reads a text that can be encoded, or a number if allowed, as for an id; raises ValueError for another value."""
    value, number = row[key], number or key == "question_id"
    if isinstance(value, bool) or not isinstance(value, (str, int, float) if number else str):
        allowed = "text or a number" if number else "text"
        raise ValueError(f"{place}: {key} is {json.dumps(value)[:80]}; it must be {allowed}")
    if isinstance(value, str):
        check_encodable(f"{place}: {key}", value)
    return value


def read_science(path: Path, folder: Path, single_pred_prompt: bool = False) -> list[Question]:
    """Reads ScienceQA as LLaVA converts it: a list of `id, conversations` and, for a question with an image, `image`.

    An image of null or "" is none, as it is for the scorer and for `scripts/convert_sqa_to_llava.py`.

    Args:
        path: the file.
        folder: the images.
        single_pred_prompt: ask for the option's letter only.

    Raises:
        ValueError: the file is not such a list.
    """
    try:
        entries = decode_json(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error.msg}") from None
    questions = []
    for number, entry in enumerate(entries if isinstance(entries, list) else [entries]):
        try:
            name, said, image = entry["id"], entry["conversations"][0]["value"], entry.get("image")
            text = said.replace(DEFAULT_IMAGE_TOKEN, "").strip()
        except (AttributeError, KeyError, IndexError, TypeError):
            raise ValueError(f"{path}: entry {number} is not an object with id and conversations") from None
        check_encodable(f"{path}: entry {number}: the question", text)
        if image == "":
            image = None
        if image is not None and not isinstance(image, str):
            raise ValueError(f"{path}: entry {number}: image is {json.dumps(image)[:80]}; it must be a file's name")
        file = image and find_image(folder, image)
        if single_pred_prompt:
            text = f"{text}\n{LETTER_ONLY['en']}"
        prompt = text if image is None else f"{DEFAULT_IMAGE_TOKEN}\n{text}"
        questions.append(Question(name, prompt, text, file, image and name_image(image), index=len(questions)))
    if not questions:
        raise ValueError(f"{path} holds no questions")
    return questions


def read_mmbench(
    path: Path, all_rounds: bool = False, single_pred_prompt: bool = False, lang: str = "en"
) -> list[Question]:
    """Reads MMBench's tab-separated table, which holds the images.

    Args:
        path: the file.
        all_rounds: ask once for every rotation of the options (CircularEval).
        single_pred_prompt: ask for the option's letter only, in `lang`.
        lang: "en" or "cn".

    Raises:
        ValueError: columns or an image are missing, or there are no rows.
    """
    rows = read_table(path, TABLE_COLUMNS)
    images = {row["index"]: row["image"] for row in rows}
    questions: list[Question] = []
    for row in rows:
        image = row["image"] if len(row["image"]) > SHORTEST_BASE64 else images.get(row["image"])
        if not image:
            raise ValueError(f"{path}: row {row['index']} has no image")
        ending = f"\n{LETTER_ONLY[lang]}" if single_pred_prompt else ""
        questions += _make_rounds(row, f"data:image;base64,{image}", ending, all_rounds, len(questions))
    if not questions:
        raise ValueError(f"{path} holds no questions")
    return questions


def _make_rounds(row: Mapping[str, str], image: str, ending: str, all_rounds: bool, start: int) -> list[Question]:
    """Makes a row's question, or one for every rotation of its options: letters stay in place, options move up.

    `start` is the position of the first.
    """
    found = find_row_options(row)
    letters, options = list(found), list(found.values())
    image_name = name_image(image)
    stem = row["question"] if is_missing(row["hint"]) else f"{row['hint']}\n{row['question']}"
    name = int(row["index"]) if row["index"].isdecimal() else row["index"]
    questions = []
    for turn in range(max(1, len(options)) if all_rounds else 1):
        moved, moved_letters = options[turn:] + options[:turn], letters[turn:] + letters[:turn]
        prompt = "\n".join([stem, *(f"{letter}. {option}" for letter, option in zip(letters, moved, strict=True))])
        extra = {"round_id": turn, "options": moved, "option_char": moved_letters}
        questions.append(Question(name, prompt, prompt + ending, image, image_name, extra, start + turn))
    return questions


def chunk(items: Sequence[T], count: int, index: int) -> range:
    """Finds the positions of the `index`-th of `count` chunks of equal length; the last ones may be shorter or empty.

    Raises:
        ValueError: there is no such chunk.
    """
    if count < 1 or not 0 <= index < count:
        raise ValueError(f"chunk {index} of {count} chunks: chunk_idx must be at least 0 and below num_chunks")
    size = math.ceil(len(items) / count)
    return range(min(index * size, len(items)), min((index + 1) * size, len(items)))


def select_indices(args: argparse.Namespace, questions: Sequence[Question]) -> range:
    """Selects this run's questions by their positions: those of its chunk, or the first of them (`--limit`)."""
    return chunk(questions, args.num_chunks, args.chunk_idx)[: args.limit]
