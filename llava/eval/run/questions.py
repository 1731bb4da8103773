"""The benchmarks' question files: LLaVA's JSON lines, ScienceQA's JSON, MMBench's table.

A question comes out with the prompt that its answer's row repeats, which is not always all of the text that the model
is asked. Knows nothing of models; pictures are named, not opened.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import pandas

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.eval.run.answerer import read_questions

T = TypeVar("T")

LETTER_ONLY = {
    "en": "Answer with the option's letter from the given choices directly.",
    "cn": "请直接回答选项字母。",
}
OPTIONS = ("A", "B", "C", "D")
TABLE_COLUMNS = ("index", "image", "question", "hint", *OPTIONS)
SHORTEST_BASE64 = 64
"""A shorter image field of a table is the index of the row that holds the picture."""


@dataclass(frozen=True)
class Question:
    """A question as a model is asked it."""

    question_id: int | str
    prompt: str
    """What the answer's row says was asked."""
    text: str
    """What is asked, behind the picture."""
    image: str | Path | None
    """A file, or a `data:` URL; None for a question without a picture."""
    image_name: str | None = None
    """The picture's name in the question file; a hash of a picture that lies in the file itself."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the answer's row."""


def read_lines(path: Path, folder: Path) -> list[Question]:
    """JSON lines of `question_id, image, text`; pictures lie in `folder`.

    Raises:
        ValueError: a line is no question, or there are none.
    """
    return [
        Question(line.question_id, line.text, line.text, folder / line.image, line.image)
        for line in read_questions(path)
    ]


def read_science(path: Path, folder: Path, single_pred_prompt: bool = False) -> list[Question]:
    """ScienceQA as LLaVA converts it: a list of `id, conversations` and, where there is a picture, `image`.

    Args:
        path: the file.
        folder: where pictures lie.
        single_pred_prompt: ask for the option's letter only.

    Raises:
        ValueError: the file is no such list.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error.msg}") from None
    questions = []
    for number, entry in enumerate(entries if isinstance(entries, list) else [entries]):
        try:
            name, said, image = entry["id"], entry["conversations"][0]["value"], entry.get("image")
        except (KeyError, IndexError, TypeError):
            raise ValueError(f"{path}: entry {number} is no object with id and conversations") from None
        text = said.replace(DEFAULT_IMAGE_TOKEN, "").strip()
        if single_pred_prompt:
            text = f"{text}\n{LETTER_ONLY['en']}"
        prompt = text if image is None else f"{DEFAULT_IMAGE_TOKEN}\n{text}"
        questions.append(Question(name, prompt, text, None if image is None else folder / image, image))
    if not questions:
        raise ValueError(f"{path} holds no questions")
    return questions


def read_mmbench(
    path: Path, all_rounds: bool = False, single_pred_prompt: bool = False, lang: str = "en"
) -> list[Question]:
    """MMBench's tab-separated table, pictures inside.

    Args:
        path: the file.
        all_rounds: ask once for every rotation of the options (CircularEval).
        single_pred_prompt: ask for the option's letter only, in `lang`.
        lang: "en" or "cn".

    Raises:
        ValueError: columns or a picture are missing, or there are no rows.
    """
    table = pandas.read_table(path, dtype=str, keep_default_na=False)
    if missing := [name for name in TABLE_COLUMNS if name not in table.columns]:
        raise ValueError(f"{path} has no column {', '.join(missing)}")
    rows = table.to_dict("records")
    pictures = {row["index"]: row["image"] for row in rows}
    questions: list[Question] = []
    for row in rows:
        image = row["image"] if len(row["image"]) > SHORTEST_BASE64 else pictures.get(row["image"])
        if not image:
            raise ValueError(f"{path}: row {row['index']} has no picture")
        ending = f"\n{LETTER_ONLY[lang]}" if single_pred_prompt else ""
        questions += _rounds(row, f"data:image;base64,{image}", ending, all_rounds)
    if not questions:
        raise ValueError(f"{path} holds no questions")
    return questions


def _rounds(row: Mapping[str, str], image: str, ending: str, all_rounds: bool) -> list[Question]:
    """One row's question, or all the rotations of its options; letters keep their places, options move up."""
    options = []
    for letter in OPTIONS:
        if _is_none(row[letter]):
            break
        options.append(row[letter])
    letters = list(OPTIONS[: len(options)])
    image_name = f"sha256:{sha256(image.encode()).hexdigest()[:16]}"
    stem = row["question"] if _is_none(row["hint"]) else f"{row['hint']}\n{row['question']}"
    name = int(row["index"]) if row["index"].isdecimal() else row["index"]
    questions = []
    for turn in range(max(1, len(options)) if all_rounds else 1):
        moved, moved_letters = options[turn:] + options[:turn], letters[turn:] + letters[:turn]
        prompt = "\n".join([stem, *(f"{letter}. {option}" for letter, option in zip(letters, moved, strict=True))])
        extra = {"round_id": turn, "options": moved, "option_char": moved_letters}
        questions.append(Question(name, prompt, prompt + ending, image, image_name, extra))
    return questions


def _is_none(value: str) -> bool:
    """Whether a cell of a table says that there is nothing."""
    return value.strip().lower() in ("", "nan", "none")


def chunk(items: Sequence[T], count: int, index: int) -> range:
    """The places of the `index`-th of `count` runs of equal length (the last ones shorter) that `items` are cut into.

    Raises:
        ValueError: there is no such chunk.
    """
    if count < 1 or not 0 <= index < count:
        raise ValueError(f"chunk {index} of {count} chunks: chunk_idx must be at least 0 and below num_chunks")
    size = math.ceil(len(items) / count)
    return range(min(index * size, len(items)), min((index + 1) * size, len(items)))
