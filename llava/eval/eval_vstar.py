"""V* Bench: attributes, relations, overall: `python -m llava.eval.eval_vstar`.

Scores generated letters and, alike, the letters that `llava.eval.vstar_likelihood` chose. Source: arXiv 2312.14135.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from llava.eval.score.benchmark import Benchmark
from llava.eval.score.choice import labelled_main, read_letter, right_letter
from llava.eval.score.rows import Row
from llava.eval.score.score import Score, accuracy

BENCHMARK = Benchmark(
    name="V\\* Bench",
    script="vstar",
    folder="vstar",
    questions="test_questions.jsonl",
    images="",
    data="`vstar/`: `craigwu/vstar_bench` as it is",
    measures="attributes, relations, overall",
    needs={"test_questions.jsonl": "hf download craigwu/vstar_bench --repo-type dataset --local-dir {dir}"},
    labels={"--question-file": "test_questions.jsonl"},
    flags=(),
    scorer="eval_vstar",
)

CATEGORIES = {"direct_attributes": "attributes", "relative_position": "relations"}


def score(questions: Sequence[Row], said: Sequence[str]) -> Score:
    """Scores answers to questions with `category` and `label`; overall is over questions, not over categories.

    Raises:
        ValueError: a category that V* Bench does not have.
    """
    groups = [question["category"] for question in questions]
    if unknown := set(groups) - set(CATEGORIES):
        raise ValueError(f"category is {min(unknown)!r}; V* Bench has {' and '.join(CATEGORIES)}")
    found = [read_letter(question, text) for question, text in zip(questions, said, strict=True)]
    right = [letter == right_letter(question, "label") for question, letter in zip(questions, found, strict=True)]
    rows = {}
    members = {name: [group == category for group in groups] for category, name in CATEGORIES.items()}
    for name, member in (members | {"overall": [True] * len(groups)}).items():
        if own := [i for i, belongs in enumerate(member) if belongs]:
            rows[name] = accuracy([right[i] for i in own]) | {"unparsed": [found[i] for i in own].count(None)}
    return Score("V* Bench", rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    return labelled_main("eval_vstar", "V* Bench", ("category", "label"), score, argv)


if __name__ == "__main__":
    sys.exit(main())
