"""MMBench: accuracy in the options' first order and by CircularEval: `python -m llava.eval.eval_mmbench`.

CircularEval asks a question once for every rotation of its options and counts it as right if all answers are. The
rotations come as rounds of the runner (`--all-rounds`) or as rows of the table, where the index of a copy exceeds its
original's by a multiple of a million. Source: arXiv 2307.06281; letters are read by rule, no other model is asked.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from llava.eval.parsing import option_letter
from llava.eval.records import Key, Row, keyed, read_answers, read_table
from llava.eval.scoring import Score, accuracy, accuracy_by, run_scorer, score_parser

COPY = 1_000_000
LETTERS = "ABCD"

Order = tuple[int, int]
"""Index in the table, round."""


def original(index: int) -> int:
    """The index of the question that a row is a copy of."""
    return index % COPY


def chosen(answer: Row) -> str | None:
    """The letter, as the table has it, that an answer means; `options` and `option_char` say how they were shown."""
    shown = dict(zip(LETTERS, map(str, answer["options"]), strict=False))
    letter = option_letter(str(answer["text"]), shown)
    return None if letter is None else answer["option_char"][LETTERS.index(letter)]


def score(questions: Mapping[int, Row], answers: Mapping[Order, Row]) -> Score:
    """Scores answers; CircularEval where the questions were asked in more than one order.

    Args:
        questions: index -> row of the table.
        answers: (index, round) -> answer row.

    Raises:
        ValueError: a question has no answer, or CircularEval lacks an order of one.
    """
    if unknown := [index for index, _ in answers if index not in questions]:
        raise ValueError(f"there is an answer to question {unknown[0]}, which the table does not have")
    letters = {order: chosen(answer) for order, answer in answers.items()}
    right = {order: letters[order] == questions[order[0]]["answer"] for order in answers}
    bases = [index for index in questions if index < COPY]
    if lacking := [index for index in questions if (index, 0) not in right]:
        raise ValueError(f"{len(lacking)} of {len(questions)} questions have no answer, for example {lacking[0]}")
    first = [right[index, 0] for index in bases]
    rows = {"first order": accuracy(first) | {"unparsed": sum(letters[index, 0] is None for index in bases)}}
    hits = first
    orders = rotations(answers)
    if any(len(own) > 1 for own in orders.values()):
        hits = [circular_hit(index, orders[index], answers, right) for index in bases]
        rows["CircularEval"] = accuracy(hits)
    for column in ("l2-category", "category"):
        if all(questions[index].get(column) for index in bases):
            rows |= accuracy_by(hits, [f"{column}: {questions[index][column]}" for index in bases])
    return Score("MMBench", rows)


def rotations(answers: Mapping[Order, Row]) -> dict[int, list[Order]]:
    """Original index -> the orders in which it was asked."""
    orders: dict[int, list[Order]] = {}
    for order in answers:
        orders.setdefault(original(order[0]), []).append(order)
    return orders


def circular_hit(
    index: int, orders: Sequence[Order], answers: Mapping[Order, Row], right: Mapping[Order, bool]
) -> bool:
    """Whether a question is right in all orders.

    Raises:
        ValueError: there are not as many orders as options.
    """
    wanted = len(answers[index, 0]["options"])
    if len(orders) != wanted:
        raise ValueError(f"question {index} was asked in {len(orders)} orders; CircularEval needs all {wanted}")
    return all(right[order] for order in orders)


def read_questions(path: Path) -> dict[int, Row]:
    """The table, by index.

    Raises:
        ValueError: a column is missing, an index is no number, or the split comes without answers.
    """
    table = keyed(
        path,
        [(f"{path}: row {n}", row) for n, row in enumerate(read_table(path), 1)],
        ("question", "A", "B"),
        ("index",),
    )
    if wrong := [key[0] for key in table if not key[0].isdigit()]:
        raise ValueError(f"{path}: index is {wrong[0]!r}; it must be a whole number")
    if any(row.get("answer") not in tuple(LETTERS) for row in table.values()):
        raise ValueError(f"{path} has questions without an answer: a test split, which MMBench's server scores")
    return {int(key[0]): row for key, row in table.items()}


def measure(args: argparse.Namespace) -> Score:
    """Reads the files that the flags name and scores them."""
    rows = read_answers(args.result_file, ("question_id", "round_id"))
    return score(read_questions(args.annotation_file), by_order(rows, args.result_file))


def by_order(rows: Mapping[Key, Row], path: Path) -> dict[Order, Row]:
    """Answers by index and round, complete with how their options were shown."""
    answers: dict[Order, Row] = {}
    for (index, turn), row in rows.items():
        if missing := [name for name in ("options", "option_char") if name not in row]:
            raise ValueError(f"{path}: the answer to question {index} has no {', '.join(missing)}")
        answers[int(index), int(turn)] = row
    return answers


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = score_parser("eval_mmbench", "Score answers to a split of MMBench that comes with answers.")
    parser.add_argument("--annotation-file", type=Path, required=True, help="the split's table (.tsv)")
    return run_scorer(parser, measure, argv)


if __name__ == "__main__":
    sys.exit(main())
