"""Reviews of two answers to a question: what the judge is asked, the scores that it gives, and their averages.

The formats are LLaVA-Bench's. A review compares a reference, the first answer, with a model's, the second.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from llava.eval.score.rows import Row, check_object, id_text, read_json, read_json_lines, read_row
from llava.eval.score.score import Score
from llava.text import check_encodable

CATEGORY = "llava_bench_"
"""Begins the names of LLaVA-Bench's categories in rule.json and in reviews; its questions have them without."""

SHOWN = 80
"""Characters of a value in a message."""

UNREAD = (-1.0, -1.0)
"""Scores of a review that gives none, as LLaVA writes them."""


def read_rules(path: Path, categories: Iterable[str]) -> dict[str, Row]:
    """Reads what the judge is told in some categories: `role`, the answers' authors, and `prompt`, the instruction.

    Raises:
        ValueError: the file is not an object, or lacks such an object for a category.
    """
    rules = read_json(path, dict)
    for name in categories:
        if name not in rules:
            raise ValueError(f"{path} has no {name!r}; it must have all categories of the questions")
        check_object(f"{path}: {name}", rules[name], ("role", "prompt"))
        for field in ("role", "prompt"):
            check_text(f"{path}: {name}: {field}", rules[name][field])
    return rules


def read_captions(path: Path) -> dict[str, str]:
    """Reads the description of each image, by its name; a list of sentences is joined by line feeds.

    Raises:
        ValueError: a line has no `image` or `caption`, or another type of caption, or an image appears twice.
    """
    captions: dict[str, str] = {}
    for number, row in read_json_lines(path):
        place = f"{path}:{number}"
        read_row(place, row, ("image", "caption"))
        caption = row["caption"]
        for text in caption if isinstance(caption, list) else [caption]:
            check_text(f"{place}: caption", text)
        if row["image"] in captions:
            raise ValueError(f"{place}: image {row['image']!r} appears twice")
        captions[row["image"]] = "\n".join(caption) if isinstance(caption, list) else caption
    return captions


def check_text(place: str, value: Any) -> None:
    """Raises ValueError unless a value is text that can be encoded."""
    if not isinstance(value, str):
        raise ValueError(f"{place} is {value!r}; it must be text")
    check_encodable(place, value)


def build_request(caption: str, question: str, answers: Sequence[str], rule: Row) -> str:
    """Builds the judge's request, with LLaVA's headings."""
    parts = [f"[Context]\n{caption}", f"[Question]\n{question}"]
    for number, answer in enumerate(answers, start=1):
        author = f"{rule['role']} {number}"
        parts.append(f"[{author}]\n{answer}\n\n[End of {author}]")
    parts.append(f"[System]\n{rule['prompt']}")
    return "".join(f"{part}\n\n" for part in parts)


def read_scores(review: str) -> tuple[float, float]:
    """Reads the two numbers of a review's first line, parted by blanks or a comma; `UNREAD` if it has no others.

    The judge is asked for scores from 1 to 10.
    """
    parts = review.strip().partition("\n")[0].replace(",", " ").split()
    try:
        first, second = map(float, parts)
    except ValueError:
        return UNREAD
    return (first, second) if all(0 <= value <= 10 for value in (first, second)) else UNREAD


def read_reviews(path: Path) -> list[Row]:
    """Reads a file of reviews.

    Raises:
        ValueError: a line has no question_id or pair of scores (`tuple`, earlier `score`), or a category that is no
            text; a question appears twice, or there is none.
    """
    reviews: list[Row] = []
    known: set[str] = set()
    for number, row in read_json_lines(path):
        place = f"{path}:{number}"
        check_object(place, row, ("question_id",))
        pair, category = row.get("tuple", row.get("score")), row.get("category", "")
        if not (isinstance(pair, list) and len(pair) == 2 and all(map(_is_score, pair))):
            raise ValueError(f"{place}: tuple is {str(pair)[:SHOWN]}; it must hold the scores of two answers")
        check_text(f"{place}: category", category)
        if (name := id_text(row["question_id"])) in known:
            raise ValueError(f"{place}: question_id {name!r} appears twice")
        known.add(name)
        reviews.append({**row, "tuple": tuple(pair)})
    if not reviews:
        raise ValueError(f"{path} holds no reviews")
    return reviews


def _is_score(value: Any) -> bool:
    """Whether a value is a number that can be averaged; `UNREAD` has the smallest."""
    return type(value) in (int, float) and -1 <= value <= 100


def average_scores(name: str, reviews: Iterable[Row], ignored: Sequence[str] = ()) -> Score:
    """Averages the scores of reviews, over all and by category.

    "relative" is the model's mean in % of the reference's; "reference" and "model" are the means, times 10 as LLaVA
    prints them. Reviews without scores are left out and counted as "unread"; LLaVA averages their -1. A group without
    any scores has no averages.

    Args:
        name: of the reviews.
        reviews: from `read_reviews`.
        ignored: question_id of questions to leave out.

    Raises:
        ValueError: all scores of the reference in a group are 0, or no review is left.
    """
    pairs: dict[str, list[tuple[float, float]]] = {"all": []}
    for row in reviews:
        if id_text(row["question_id"]) not in ignored:
            for group in ("all", *([row["category"]] if "category" in row else [])):
                pairs.setdefault(group, []).append(row["tuple"])
    return Score(name, {group: _average(f"{name}: {group}", pairs[group]) for group in sorted(pairs)})


def _average(place: str, pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    given = [pair for pair in pairs if pair != UNREAD]
    if not pairs:
        raise ValueError(f"{place}: no review is left")
    if not given:
        return {"questions": 0, "unread": len(pairs)}
    reference, model = (sum(values) / len(given) for values in zip(*given, strict=True))
    if not reference:
        raise ValueError(f"{place}: the reference's scores are 0, so that nothing is relative to them")
    means = {"relative": 100 * model / reference, "reference": 10 * reference, "model": 10 * model}
    return {**means, "questions": len(given), "unread": len(pairs) - len(given)}
