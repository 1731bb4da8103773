"""POPE: yes/no questions about objects in and not in an image: `python -m llava.eval.eval_pope`.

Accuracy, precision, recall, F1 ("yes" is positive) and share of "yes" on the random, popular and adversarial questions,
and their means. Answers match questions by id, questions match labels by image and object. Source: arXiv 2305.10355 and
its evaluation's rule for reading an answer.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from llava.eval.score.benchmark import ANNOTATIONS, Benchmark
from llava.eval.score.parse import read_pope_answer
from llava.eval.score.prompts import asks, check_prompts
from llava.eval.score.rows import Key, Row, read_json_lines, read_labelled, read_row
from llava.eval.score.score import Results, Score, run_scorer, score_parser

BENCHMARK = Benchmark(
    name="POPE",
    script="pope",
    folder="pope",
    questions="llava_pope_test.jsonl",
    images="val2014",
    data="`pope/`: `coco/` of [commit e3e3926](https://github.com/AoiDragon/POPE/tree/e3e3926/output/coco), `val2014/`",
    measures="accuracy, precision, recall, F1, yes",
    needs={
        "llava_pope_test.jsonl": ANNOTATIONS,
        "coco": "the folder of https://github.com/AoiDragon/POPE/tree/e3e3926/output/coco, as {dir}/coco (later label"
        " files do not fit LLaVA's questions)",
        "val2014": "http://images.cocodataset.org/zips/val2014.zip, unpacked in {dir}",
    },
    labels={"--annotation-dir": "coco", "--question-file": "llava_pope_test.jsonl"},
    scorer="eval_pope",
)

MEASURES = ("accuracy", "precision", "recall", "F1", "yes")
ADVICE = (
    "LLaVA's question file fits the label files of commit e3e3926:"
    " https://github.com/AoiDragon/POPE/tree/e3e3926/output/coco"
)
_ASKED = re.compile(r"is there (?:an? |the |any )?(.+?)(?: in the im\w*ge)?\s*\??")

Objects = Mapping[str, Mapping[Key, Row]]
"""Category -> (image, object, number of earlier rows with these two) -> row."""


def score(labels: Mapping[str, Sequence[tuple[Key, str]]], said: Mapping[str, Mapping[Key, str]]) -> Score:
    """Scores the answers to each category's questions.

    Args:
        labels: category -> (image, question) and "yes" or "no", of each question.
        said: category -> question -> the model's answer.
    """
    rows = {}
    for category, own in labels.items():
        right = [label == "yes" for _, label in own]
        rows[category] = measures(right, [read_pope_answer(said[category][key]) == "yes" for key, _ in own])
    mean = {name: sum(row[name] for row in rows.values()) / len(rows) for name in MEASURES}
    return Score("POPE", rows | {"mean": mean | {"questions": sum(len(own) for own in labels.values())}})


def measures(right: Sequence[bool], said: Sequence[bool]) -> dict[str, float]:
    """Computes the measures of one category in %; True is "yes". A ratio with denominator 0 is 0."""
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
    """Computes a share in %; 0 of 0 is 0."""
    return 100 * part / whole if whole else 0.0


def read_labels(folder: Path) -> dict[str, list[Row]]:
    """Reads POPE's files `coco_pope_CATEGORY.json`, JSON lines of `image, text, label`, by category.

    Raises:
        ValueError: there is no such file, or a label is neither yes nor no.
    """
    labels: dict[str, list[Row]] = {}
    for path in sorted(folder.glob("coco_pope_*.json")):
        own = labels.setdefault(path.stem.removeprefix("coco_pope_"), [])
        for number, row in read_json_lines(path):
            row = read_row(f"{path}:{number}", row, ("image", "text", "label"))
            if row["label"] not in ("yes", "no"):
                raise ValueError(f"{path}:{number}: label is {row['label']!r}; it must be 'yes' or 'no'")
            own.append(row)
    if not labels:
        raise ValueError(f"{folder} holds no coco_pope_CATEGORY.json")
    return labels


def asked_object(text: str) -> str:
    """Finds the object that a question asks about, since files spell the same question differently.

    "Is there an apple in the imange?", a spelling of LLaVA's question file, asks about "apple". A question of another
    form is returned as it is.
    """
    question = " ".join(strip_instruction(text).lower().split())
    found = _ASKED.fullmatch(question)
    return found[1] if found else question


def strip_instruction(text: str) -> str:
    """Removes the instruction, which LLaVA's question file adds on a separate line."""
    return text.split("\n")[0].strip()


def asks_same(prompt: str, question: str) -> bool:
    """Whether a prompt asks a question, in this spelling or another."""
    return asked_object(prompt) == asked_object(question) or asks(prompt, question)


def index_by_object(rows: Iterable[Row]) -> dict[Key, Row]:
    """Maps (image, object, number of earlier rows with these two) to the rows of one category."""
    seen: Counter[Key] = Counter()
    found: dict[Key, Row] = {}
    for row in rows:
        key = (str(row["image"]), asked_object(row["text"]))
        found[(*key, str(seen[key]))] = row
        seen[key] += 1
    return found


def check_labels(labels: Objects, asked: Objects, args: argparse.Namespace) -> None:
    """Raises ValueError unless labels and questions of each category are about the same objects and images."""
    for category in dict.fromkeys((*labels, *asked)):
        own, questions = labels.get(category, {}), asked.get(category, {})
        for rows, others, lacking in (
            (own, questions, f"{args.question_file} lacks"),
            (questions, own, f"{args.annotation_dir} lacks the labels of"),
        ):
            if absent := [row for key, row in rows.items() if key not in others]:
                raise ValueError(
                    f"{lacking} {len(absent)} of the {len(rows)} {category} questions, for example"
                    f" {strip_instruction(absent[0]['text'])!r} about {absent[0]['image']}; {ADVICE}"
                )


def score_files(args: argparse.Namespace) -> Score:
    """Scores the answers that the flags name."""
    labels = {category: index_by_object(rows) for category, rows in read_labels(args.annotation_dir).items()}
    questions = read_labelled(args.question_file, ("image", "text", "category"))
    categories: dict[str, list[Row]] = {}
    for name, row in questions.items():
        categories.setdefault(row["category"], []).append(row | {"key": name})
    asked = {category: index_by_object(rows) for category, rows in categories.items()}
    check_labels(labels, asked, args)
    results = Results.of(args)
    rows_said = results.by("question_id")
    texts = dict(zip(questions, results.texts(questions, rows_said), strict=True))
    check_prompts(results.path, rows_said, {key: row["text"] for key, row in questions.items()}, asks_same)
    said = {category: {key: texts[row["key"]] for key, row in rows.items()} for category, rows in asked.items()}
    truth = {category: [(key, row["label"]) for key, row in rows.items()] for category, rows in labels.items()}
    return score(truth, said)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = score_parser("eval_pope", "Score answers to POPE.")
    parser.add_argument("--annotation-dir", type=Path, required=True, help="folder of coco_pope_*.json")
    parser.add_argument("--question-file", type=Path, required=True, help="llava_pope_test.jsonl")
    return run_scorer(parser, score_files, argv)


if __name__ == "__main__":
    sys.exit(main())
