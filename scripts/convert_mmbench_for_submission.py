"""Writes answers to MMBench as the Excel table that its server takes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from llava.command import OneLineParser, parse_and_run
from llava.eval.eval_mmbench import check_indices
from llava.eval.score.rows import Key, Row, find_texts, read_answers
from llava.eval.score.tables import read_table

LEFT_OUT = ("hint", "category", "source", "image", "comment", "l2-category")
"""Columns of the table that the server does not take."""


def submission(table: Sequence[Row], answers: Mapping[Key, Row], path: Path) -> list[Row]:
    """Adds `prediction` to the table's rows: the answer to the options' first order, as the model gave it."""
    said = find_texts([(row["index"], "0") for row in table], answers, path)
    return [
        {name: value for name, value in row.items() if name not in LEFT_OUT} | {"prediction": text}
        for row, text in zip(table, said, strict=True)
    ]


def convert(args: argparse.Namespace) -> None:
    """Writes UPLOAD_DIR/EXPERIMENT.xlsx from RESULT_DIR/EXPERIMENT.jsonl."""
    import openpyxl  # an extra
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

    result_file = args.result_dir / f"{args.experiment}.jsonl"
    table = read_table(args.annotation_file, ("index",))
    check_indices(args.annotation_file, (row["index"] for row in table))
    rows = submission(table, read_answers(result_file, ("question_id", "round_id")), result_file)
    target = args.upload_dir / f"{args.experiment}.xlsx"
    target.parent.mkdir(parents=True, exist_ok=True)  # a run may be named as on the hub, OWNER/MODEL
    book = openpyxl.Workbook()
    book.active.title = "Sheet1"  # as pandas writes it
    book.active.append(list(rows[0]) if rows else [])
    for row in rows:
        texts = {name: ILLEGAL_CHARACTERS_RE.sub("", text) for name, text in row.items()}
        book.active.append(list((texts | {"index": int(row["index"])}).values()))
        for cell in book.active[book.active.max_row]:
            if cell.data_type in ("f", "e"):  # an answer that begins with "=", or is an error's name, "#N/A"
                cell.data_type = "s"
    book.save(target)
    print(f"{target}: {len(rows)} predictions")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = OneLineParser(prog="convert_mmbench_for_submission", description="Write MMBench's submission file.")
    parser.add_argument("--annotation-file", type=Path, required=True, help="the split's table (.tsv)")
    parser.add_argument("--result-dir", type=Path, required=True, help="folder of the answers")
    parser.add_argument("--upload-dir", type=Path, required=True, help="folder to write to")
    parser.add_argument("--experiment", required=True, help="name of the run")
    return parse_and_run(parser, convert, argv)


if __name__ == "__main__":
    sys.exit(main())
