"""Scores question files whose rows hold their right answers: V* Bench, CV-Bench and RealWorldQA."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from llava.eval.score.option_lists import find_listed_options
from llava.eval.score.parse import letters, option_letter
from llava.eval.score.prompts import check_prompts
from llava.eval.score.rows import Row, read_labelled
from llava.eval.score.score import Results, Score, run_scorer, score_parser

Scorer = Callable[[Sequence[Row], Sequence[str]], Score]
"""Questions and, in the same order, the model's answers -> score."""


def read_letter(question: Row, text: str) -> str | None:
    """Reads the letter that an answer chooses; None if it chooses none."""
    return option_letter(text, find_options(question))


def find_options(question: Row) -> dict[str, str]:
    """Finds the options that a question lists, or the letters A to F without text if it lists none."""
    return find_listed_options(question["text"]) or letters(6)


def label_letter(label: str) -> str:
    """Reads the letter of a label such as "B" or "(B)"."""
    return label.strip().strip("().").upper()


def right_letter(question: Row, field: str, options: Iterable[str] | None = None) -> str:
    """Reads the letter of a question's right option.

    Args:
        question: with the label in `field`.
        field: name of the label's field.
        options: letters of the options; by default those of `find_options`.

    Raises:
        ValueError: the field holds something else.
    """
    letter, allowed = label_letter(question[field]), list(options or find_options(question))
    if letter not in allowed:
        name, value = question.get("question_id"), question[field]
        raise ValueError(
            f"question {name!r}: {field} is {value!r}; it must be an option's letter, one of {', '.join(allowed)}"
        )
    return letter


def labelled_main(prog: str, benchmark: str, fields: Sequence[str], score: Scorer, argv: Sequence[str] | None) -> int:
    """Runs a scorer's command line: reads the two files, checks that every question has `fields` and that the
    answers are to these questions, and scores."""

    def score_files(args: argparse.Namespace) -> Score:
        questions = read_labelled(args.question_file, ("text", *fields))
        results = Results.of(args)
        said = results.by("question_id")
        texts = results.texts(questions, said)
        check_prompts(results.path, said, {key: row["text"] for key, row in questions.items()})
        try:
            return score(list(questions.values()), texts)
        except ValueError as error:
            raise ValueError(f"{args.question_file}: {error}") from None

    parser = score_parser(prog, f"Score answers to {benchmark}.")
    help_text = f"questions, JSON lines with {', '.join(fields)} among their fields"
    parser.add_argument("--question-file", type=Path, required=True, help=help_text)
    return run_scorer(parser, score_files, argv)
