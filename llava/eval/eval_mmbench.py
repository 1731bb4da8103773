"""MMBench: accuracy in the options' first order and by CircularEval: `python -m llava.eval.eval_mmbench`.

CircularEval counts a question as right if it is right in every order of its options that it was asked in. These are the
table's rows whose indices differ by a multiple of a million (fewer than options where "none of these" keeps its
place), the rounds of the runner (`--all-rounds`), or both. Answers are the runner's or LLaVA's JSON lines, or the Excel
table for MMBench's server. Source: arXiv 2307.06281; letters are read by rule, without another model.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from llava.eval.score.benchmark import Benchmark
from llava.eval.score.parse import option_letter
from llava.eval.score.prompts import check_prompts
from llava.eval.score.rows import Key, Row, check_object, index_rows
from llava.eval.score.score import Results, Score, accuracy, accuracy_by, run_scorer, score_parser
from llava.eval.score.tables import OPTION_COLUMNS, find_row_options, read_sheet, read_table

BENCHMARK = Benchmark(
    name="MMBench",
    script="mmbench",
    folder="mmbench",
    questions="{split}.tsv",
    images=None,
    data="`mmbench/mmbench_dev_20230712.tsv`; Chinese: `mmbench_cn/mmbench_dev_cn_20231003.tsv`",
    measures="first order, CircularEval, by category",
    needs={"{split}.tsv": "https://download.openmmlab.com/mmclassification/datasets/mmbench/{split}.tsv, into {dir}"},
    labels={"--annotation-file": "{split}.tsv"},
    runner="model_vqa_mmbench",
    flags=("--single-pred-prompt", "--temperature", "0"),
    scorer="eval_mmbench",
    split="mmbench_dev_20230712",
)

COPY = 1_000_000

Order = tuple[int, int]
"""Index in the table, round."""


def original(index: int) -> int:
    """Finds the index of the question that a row is a copy of."""
    return index % COPY


def read_table_letter(answer: Row) -> str | None:
    """Reads the letter, in the table's order, that an answer chooses; `options` and `option_char` are as shown."""
    shown = dict(zip(OPTION_COLUMNS, map(str, answer["options"]), strict=False))
    letter = option_letter(str(answer["text"]), shown)
    return None if letter is None else answer["option_char"][OPTION_COLUMNS.index(letter)]


def score(questions: Mapping[int, Row], answers: Mapping[Order, Row]) -> Score:
    """Scores answers; CircularEval where a question was asked in more than one order.

    Args:
        questions: index -> row of the table.
        answers: (index, round) -> answer row.

    Raises:
        ValueError: a row of the table, or one of its rounds, has no answer, or an answer has no row.
    """
    if unknown := [index for index, _ in answers if index not in questions]:
        raise ValueError(f"there is an answer to question {unknown[0]}, which the table does not have")
    letters = {order: read_table_letter(answer) for order, answer in answers.items()}
    right = {order: letters[order] == questions[order[0]]["answer"] for order in answers}
    if lacking := [index for index in questions if (index, 0) not in right]:
        raise ValueError(f"{len(lacking)} of {len(questions)} questions have no answer, for example {lacking[0]}")
    check_rounds(answers)
    bases: dict[int, int] = {}
    for index in sorted(questions):
        bases.setdefault(original(index), index)
    first = [right[index, 0] for index in bases.values()]
    rows = {"first order": accuracy(first) | {"unparsed": sum(letters[index, 0] is None for index in bases.values())}}
    hits = first
    if len(answers) > len(bases):
        missed = {original(index) for (index, _), hit in right.items() if not hit}
        hits = [base not in missed for base in bases]
        rows["CircularEval"] = accuracy(hits)
    for column in ("l2-category", "category"):
        if all(questions[index].get(column) for index in bases.values()):
            rows |= accuracy_by(hits, [f"{column}: {questions[index][column]}" for index in bases.values()])
    return Score("MMBench", rows)


def check_rounds(answers: Mapping[Order, Row]) -> None:
    """Raises ValueError unless, where questions were asked in rounds, each was asked in all of its rounds."""
    if not any(turn for _, turn in answers):
        return
    for (index, turn), answer in answers.items():
        wanted = len(answer["options"])
        if turn == 0 and (lacking := [other for other in range(wanted) if (index, other) not in answers]):
            asked = wanted - len(lacking)
            raise ValueError(f"question {index} was asked in {asked} orders; CircularEval needs all {wanted}")


def read_questions(path: Path) -> dict[int, Row]:
    """Reads the table by index.

    Raises:
        ValueError: a column is missing, an index is not a number, or the split has no answers.
    """
    table = index_rows(
        path,
        [(f"{path}: row {n}", row) for n, row in enumerate(read_table(path), 1)],
        ("question", "A", "B"),
        ("index",),
    )
    check_indices(path, (key[0] for key in table))
    if any(row.get("answer") not in OPTION_COLUMNS for row in table.values()):
        raise ValueError(f"{path} has questions without an answer: a test split, which MMBench's server scores")
    return {int(key[0]): row for key, row in table.items()}


def check_indices(path: Path, indices: Iterable[str]) -> None:
    """Raises ValueError unless all indices of a table are whole numbers."""
    if (wrong := next((index for index in indices if not index.isdigit()), None)) is not None:
        raise ValueError(f"{path}: index is {wrong!r}; it must be a whole number")


def score_files(args: argparse.Namespace) -> Score:
    """Scores the answers that the flags name."""
    questions, results = read_questions(args.annotation_file), Results.of(args)
    path = results.path
    if results.checking:
        return score(questions, read_answer_table(read_table(path), "question", questions, path))
    if path.suffix.lower() == ".xlsx":
        return score(questions, read_answer_table(read_sheet(path), "prediction", questions, path))
    said = results.by("question_id", "round_id")
    answers = index_by_order(said, path)
    texts = {key: questions[int(key[0])]["question"] for key in said if int(key[0]) in questions}
    check_prompts(path, said, texts)
    return score(questions, answers)


def read_answer_table(rows: Sequence[Row], said: str, questions: Mapping[int, Row], path: Path) -> dict[Order, Row]:
    """Sorts the rows of a table of answers by index and round.

    Args:
        rows: the table, with the column `index`.
        said: the column of the answers.
        questions: the rows whose options were shown.
        path: the table's file.
    """
    table = index_rows(
        path, [(f"{path}: row {number}", row) for number, row in enumerate(rows, 1)], (said,), ("index",)
    )
    if unknown := [index for (index,) in table if not index.isdigit() or int(index) not in questions]:
        raise ValueError(f"{path} holds question {unknown[0]!r}, which the table does not have")
    answers = {}
    for (index,), row in table.items():
        options = find_row_options(questions[int(index)])
        answers[int(index), 0] = {"text": row[said], "options": [*options.values()], "option_char": [*options]}
    return answers


def index_by_order(rows: Mapping[Key, Row], path: Path) -> dict[Order, Row]:
    """Sorts answers by index and round, and checks that each has the options as shown.

    Raises:
        ValueError: an index or a round is not a number, or there are no options or not a letter for each.
    """
    answers: dict[Order, Row] = {}
    for (index, turn), row in rows.items():
        place = f"{path}: the answer to question {index}"
        if not index.isdigit() or not turn.isdigit():
            raise ValueError(f"{place}: question_id is {index!r}, round_id {turn!r}; they must be whole numbers")
        check_object(place, row, ("options", "option_char"))
        shown, letters = row["options"], row["option_char"]
        if not isinstance(shown, list) or not isinstance(letters, list | str) or len(letters) < len(shown):
            raise ValueError(f"{place}: options are {shown!r}, option_char {letters!r}; every option needs a letter")
        answers[int(index), int(turn)] = row
    return answers


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = score_parser("eval_mmbench", "Score answers to a split of MMBench that comes with answers.")
    parser.add_argument("--annotation-file", type=Path, required=True, help="the split's table (.tsv)")
    return run_scorer(parser, score_files, argv)


if __name__ == "__main__":
    sys.exit(main())
