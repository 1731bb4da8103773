"""The score of a benchmark, counting by groups, and the command line of a scorer.

A scorer is a function from rows to a `Score`; its command reads the files, prints the score as a table and writes it
with `--json`. With `--check` it reads the question file instead of the answers and scores nothing, so that wrong labels
show before a model has answered.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.command import OneLineParser, check_outputs, parse_and_run
from llava.eval.score.rows import Key, Row, find_texts, format_key, index_rows, read_answer_rows, read_json_lines

Table = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Score:
    """The result of a benchmark."""

    benchmark: str
    """The benchmark's name."""
    rows: Table
    """Group of questions -> measure -> value: shares in %, points as the benchmark gives them, counts as integers."""

    def to_dict(self) -> dict[str, Any]:
        """Converts the score to JSON types."""
        return {"benchmark": self.benchmark, "rows": {name: dict(row) for name, row in self.rows.items()}}

    def table(self) -> str:
        """Formats the score as text: a line per group, a column per measure."""
        columns = list(dict.fromkeys(name for row in self.rows.values() for name in row))
        lines = [[self.benchmark, *columns]]
        lines += [[name, *(_number(row.get(column)) for column in columns)] for name, row in self.rows.items()]
        widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(
                [line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))]
            )
            for line in lines
        )


def accuracy(right: Sequence[bool | float]) -> dict[str, float]:
    """Computes the mean in % and the count of at least one question."""
    if not right:
        raise ValueError("there is no question to score")
    return {"accuracy": 100 * sum(right) / len(right), "questions": len(right)}


def accuracy_by(right: Sequence[bool | float], groups: Sequence[str]) -> dict[str, dict[str, float]]:
    """Computes the mean in % and the count of each group, in order of first appearance."""
    found: dict[str, list[bool | float]] = {}
    for value, group in zip(right, groups, strict=True):
        found.setdefault(group, []).append(value)
    return {group: accuracy(values) for group, values in found.items()}


@dataclass(frozen=True)
class Results:
    """The answers file that a command line names; with `--check` the question file, which has no answers yet."""

    path: Path
    checking: bool = False
    """Whether it holds questions."""

    @classmethod
    def of(cls, args: argparse.Namespace) -> Results:
        """Finds the file that the flags of `score_parser` name; Python callers of a scorer may leave out `check`."""
        questions: Path | None = vars(args).get("check")
        return cls(questions or args.result_file, questions is not None)

    def rows(self) -> list[tuple[str, Row]]:
        """Reads rows with their places; a question becomes the row of an empty answer to it."""
        if not self.checking:
            return read_answer_rows(self.path)
        rows = [(f"{self.path}:{number}", row) for number, row in read_json_lines(self.path)]
        return [(place, row | ({"prompt": row["text"], "text": ""} if "text" in row else {})) for place, row in rows]

    def by(self, *key: str) -> dict[Key, Row]:
        """Reads the rows by the fields of `key`; raises as `index_rows` does."""
        return index_rows(self.path, self.rows(), ("text",), key)

    def texts(
        self, wanted: Iterable[Key], found: Mapping[Key, Row] | None = None, labels: Path | None = None
    ) -> list[str]:
        """Finds the answer to each question; raises as `find_texts` does.

        Args:
            wanted: keys of the questions that have a label.
            found: rows by such keys; by default those of the file by `question_id`.
            labels: where all of the file's questions must have a label; None allows others.

        Raises:
            ValueError: a question has no label, so the score would cover only a part of the benchmark.
        """
        found = self.by("question_id") if found is None else found
        wanted = list(wanted)
        texts = find_texts(wanted, found, self.path, "" if self.checking else "the answers to ")
        if labels is not None and (more := sorted(found.keys() - set(wanted))):
            raise ValueError(
                f"{labels} lacks labels of {len(more)} of the {len(found)} questions in {self.path}, for example"
                f" {format_key(more[0])}; there is no score over a part of a benchmark"
            )
        return texts


def score_parser(
    prog: str, description: str, result_file: bool = True, result_dir: bool = False
) -> argparse.ArgumentParser:
    """Builds a scorer's parser with the shared flags; `result_dir` adds the flag for a folder of answers files."""
    parser = OneLineParser(prog=prog, description=description)
    parser.set_defaults(check=None)
    if result_file:
        source = parser.add_mutually_exclusive_group(required=True)
        source.add_argument("--result-file", type=Path, help="answers, as the runner writes them")
        words = "only check that the labels fit this question file, before it is answered"
        if result_dir:
            source.add_argument("--result-dir", type=Path, help="folder of such files (*.jsonl); each gets a line")
        source.add_argument("--check", type=Path, metavar="QUESTIONS", help=words)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the score to this file")
    return parser


def run_scorer(
    parser: argparse.ArgumentParser,
    score_files: Callable[[argparse.Namespace], Score],
    argv: Sequence[str] | None,
    outputs: Sequence[str] = (),
) -> int:
    """Runs a scorer's command line and returns the exit code.

    Args:
        parser: from `score_parser`.
        score_files: scores the answers that the flags name.
        argv: the command line.
        outputs: attributes of the flags for more files that `score_files` writes.
    """

    return parse_and_run(parser, lambda args: print_score(args, score_files, outputs), argv)


def print_score(
    args: argparse.Namespace, score_files: Callable[[argparse.Namespace], Score], outputs: Sequence[str] = ()
) -> None:
    """Prints the score, and writes it to `--json`; with `--check`, only reports that the labels fit.

    Args:
        args: parsed by a parser from `score_parser`.
        score_files: scores the answers that the flags name.
        outputs: attributes of the flags for more files that are written.
    """
    check_outputs(args, "json", *outputs)
    score = score_files(args)
    if args.check:
        print(f"{args.check}: all labels have their questions")
        return
    print(score.table())
    if args.json:
        write_json(args.json, score.to_dict())


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file, and creates its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.2f}"
