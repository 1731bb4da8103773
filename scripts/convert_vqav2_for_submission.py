"""Writes answers to VQAv2 as its server takes them: `python scripts/convert_vqav2_for_submission.py`.

The server wants an answer to each question of the whole test set; those outside the split that was run are empty.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from llava.command import OneLineParser, parse_and_run
from llava.eval.score.rows import Key, Row, find_answers, read_answers, read_labelled
from llava.eval.score.score import write_json
from llava.eval.score.vqa import normalise_answer

TEST_FILE = "llava_vqav2_mscoco_test2015.jsonl"


def submission(test: Mapping[Key, Row], answers: Mapping[Key, Row]) -> list[Row]:
    """Builds `question_id, answer` for each question of the test set, normalised."""
    return [
        {
            "question_id": question["question_id"],
            "answer": normalise_answer(answers[key]["text"]) if key in answers else "",
        }
        for key, question in test.items()
    ]


def convert(args: argparse.Namespace) -> None:
    """Reads answers/SPLIT/NAME/merge.jsonl and writes answers_upload/SPLIT/NAME.json, in the folder of VQAv2.

    With --check it only checks that the test set has the questions of the split.
    """
    asked = args.dir / f"{args.split}.jsonl"
    split, test = read_labelled(asked, ()), read_labelled(args.dir / TEST_FILE, ())
    if args.check:
        find_answers(split, test, args.dir / TEST_FILE, "")
        print(f"{asked}: the test set has its questions")
        return
    result_file = args.dir / "answers" / args.split / args.ckpt / "merge.jsonl"
    answers = read_answers(result_file)
    find_answers(split, answers, result_file)  # is the split complete?
    if unknown := [key for key in answers if key not in test]:
        raise ValueError(f"{result_file} answers question {unknown[0][0]!r}, which {TEST_FILE} does not have")
    target = args.dir / "answers_upload" / args.split / f"{args.ckpt}.json"
    write_json(target, submission(test, answers))
    print(f"{target}: {len(test)} questions, {len(answers)} of them answered")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = OneLineParser(prog="convert_vqav2_for_submission", description="Write VQAv2's submission file.")
    parser.add_argument("--dir", type=Path, default=Path("playground/data/eval/vqav2"), help="(%(default)s)")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--ckpt", help="name of the run")
    source.add_argument("--check", action="store_true", help="only check the question files, before they are answered")
    parser.add_argument("--split", required=True, help="such as llava_vqav2_mscoco_test-dev2015")
    return parse_and_run(parser, convert, argv)


if __name__ == "__main__":
    sys.exit(main())
