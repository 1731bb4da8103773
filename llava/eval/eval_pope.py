"""POPE: does a model see objects that are not there? `python -m llava.eval.eval_pope`.

Accuracy, precision, recall, F1 ("yes" is positive) and share of "yes" on the random, popular and adversarial questions,
and their means. Source: arXiv 2305.10355 and its evaluation's rule for reading an answer.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from llava.eval.parsing import pope_yes_no
from llava.eval.records import Key, Row, read_answers, read_labelled, read_rows, texts_for
from llava.eval.scoring import Score, run_scorer, score_parser

MEASURES = ("accuracy", "precision", "recall", "F1", "yes")


def score(labels: Mapping[str, Sequence[tuple[Key, str]]], said: Mapping[str, Mapping[Key, str]]) -> Score:
    """Scores the answers to each category's questions.

    Args:
        labels: category -> (image, question) and "yes" or "no", of each question.
        said: category -> question -> the model's answer.
    """
    rows = {}
    for category, own in labels.items():
        right = [label == "yes" for _, label in own]
        rows[category] = measures(right, [pope_yes_no(said[category][key]) == "yes" for key, _ in own])
    mean = {name: sum(row[name] for row in rows.values()) / len(rows) for name in MEASURES}
    return Score("POPE", rows | {"mean": mean | {"questions": sum(len(own) for own in labels.values())}})


def measures(right: Sequence[bool], said: Sequence[bool]) -> dict[str, float]:
    """The measures of one category in %; True is "yes". A ratio whose denominator is 0 is 0."""
    pairs = list(zip(right, said, strict=True))
    hit, false_alarm, miss = (pairs.count(kind) for kind in ((True, True), (False, True), (True, False)))
    correct = hit + pairs.count((False, False))
    values = (
        share(correct, len(pairs)),
        share(hit, hit + false_alarm),
        share(hit, hit + miss),
        share(2 * hit, 2 * hit + false_alarm + miss),
        share(hit + false_alarm, len(pairs)),
    )
    return dict(zip(MEASURES, values, strict=True)) | {"questions": len(pairs)}


def share(part: int, whole: int) -> float:
    """In %; 0 of 0 is 0."""
    return 100 * part / whole if whole else 0.0


def read_labels(folder: Path) -> dict[str, list[tuple[Key, str]]]:
    """The files `coco_pope_CATEGORY.json` of POPE, JSON lines `image, text, label`, by category.

    Raises:
        ValueError: there is none, or a label is neither yes nor no.
    """
    labels: dict[str, list[tuple[Key, str]]] = {}
    for path in sorted(folder.glob("coco_pope_*.json")):
        own = labels.setdefault(path.stem.removeprefix("coco_pope_"), [])
        for number, row in read_rows(path):
            if missing := [name for name in ("image", "text", "label") if name not in row]:
                raise ValueError(f"{path}:{number}: the row has no {', '.join(missing)}")
            if row["label"] not in ("yes", "no"):
                raise ValueError(f"{path}:{number}: label is {row['label']!r}; it must be 'yes' or 'no'")
            own.append(((row["image"], bare_question(row["text"])), row["label"]))
    if not labels:
        raise ValueError(f"{folder} holds no coco_pope_CATEGORY.json")
    return labels


def bare_question(text: str) -> str:
    """A question without the instruction that LLaVA's question file adds on a line of its own."""
    return text.split("\n")[0].strip()


def answers_by_category(
    questions: Mapping[Key, Row], answers: Mapping[Key, Row], result_file: Path
) -> dict[str, dict[Key, str]]:
    """category -> (image, bare question) -> answer."""
    said: dict[str, dict[Key, str]] = {}
    for question, text in zip(questions.values(), texts_for(questions, answers, result_file), strict=True):
        said.setdefault(question["category"], {})[(question["image"], bare_question(question["text"]))] = text
    return said


def measure(args: argparse.Namespace) -> Score:
    """Reads the files that the flags name and scores them."""
    labels = read_labels(args.annotation_dir)
    questions = read_labelled(args.question_file, ("image", "text", "category"))
    said = answers_by_category(questions, read_answers(args.result_file), args.result_file)
    for category, own in labels.items():
        if absent := [key for key, _ in own if key not in said.get(category, {})]:
            raise ValueError(
                f"{args.question_file} lacks {len(absent)} of the {len(own)} {category} questions,"
                f" for example {absent[0][1]!r} about {absent[0][0]}"
            )
    return score(labels, said)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = score_parser("eval_pope", "Score answers to POPE.")
    parser.add_argument("--annotation-dir", type=Path, required=True, help="folder of coco_pope_*.json")
    parser.add_argument("--question-file", type=Path, required=True, help="llava_pope_test.jsonl")
    return run_scorer(parser, measure, argv)


if __name__ == "__main__":
    sys.exit(main())
