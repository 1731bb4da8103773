"""Q-Bench: accuracy, by type of question and by concern: `python -m llava.eval.eval_qbench`.

Right is an answer that chooses the right option. The test set has no right answers: there only the file for the server
is written, the entries with the answer as `response`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.command import check_outputs, parse_and_run
from llava.eval.score.benchmark import Benchmark
from llava.eval.score.parse import option_letter
from llava.eval.score.prompts import check_prompts
from llava.eval.score.qbench import find_right, list_options, read_entries
from llava.eval.score.rows import Row
from llava.eval.score.score import Results, Score, accuracy, accuracy_by, score_parser, write_json

RELEASE = "https://github.com/Q-Future/Q-Bench, into {dir}"

BENCHMARK = Benchmark(
    name="Q-Bench",
    script="qbench",
    folder="qbench",
    questions="{split}.json",
    images="images_llvisionqa",
    data="`qbench/`: `llvisionqa_dev.json`, `images_llvisionqa/`; the test set; both in Chinese (`qbench_zh.sh`)",
    measures="accuracy on the development set, by type and concern; the submission",
    needs={"{split}.json": f"the file of {RELEASE}", "images_llvisionqa": f"the images of {RELEASE}/images_llvisionqa"},
    labels={"--question-file": "{split}.json"},
    runner="model_vqa_qbench",
    scorer="eval_qbench",
    split="llvisionqa_dev",
)

GROUPS = {"question_type": "type", "question_concern": "concern"}
"""Fields of an entry, numbers of Q-Bench's, and what the rows of a score call them."""


def score(entries: Sequence[Row], right: Sequence[str], said: Sequence[str]) -> Score:
    """Scores answers to entries whose right letters are known."""
    letters = [option_letter(text, list_options(entry)) for entry, text in zip(entries, said, strict=True)]
    hits = [letter == wanted for letter, wanted in zip(letters, right, strict=True)]
    rows = {"all": accuracy(hits) | {"unparsed": letters.count(None)}}
    for field, name in GROUPS.items():
        groups = accuracy_by(hits, [f"{name} {entry.get(field, 'unknown')}" for entry in entries])
        rows |= {group: groups[group] for group in sorted(groups)}
    return Score("Q-Bench", rows)


def read_right(path: Path, entries: Sequence[Row]) -> list[str] | None:
    """Reads the letters of the right options; None for the test set, which has none.

    Raises:
        ValueError: some entries have a right answer and others do not, or it is no option.
    """
    if not any("correct_ans" in entry for entry in entries):
        return None
    return [find_right(f"{path}: entry {number}", entry) for number, entry in enumerate(entries)]


def evaluate(args: argparse.Namespace) -> None:
    """Writes the submission, and prints the score where the right answers are known; or only checks them."""
    path = args.check or args.question_file
    entries = read_entries(path)
    right = read_right(path, entries)
    if args.check:
        known = "all labels have their questions" if right else f"{len(entries)} questions, without right answers"
        print(f"{path}: {known}")
        return
    check_outputs(args, "json", "upload_file")
    results = Results.of(args)
    answers = results.by("question_id")
    questions = {(str(entry["question_id"]),): entry["question"] for entry in entries}
    said = results.texts(questions, answers, path)
    check_prompts(results.path, answers, questions)
    if args.upload_file:
        pairs = zip(entries, said, strict=True)
        write_json(args.upload_file, [{**_as_released(entry), "response": text} for entry, text in pairs])
        print(f"{args.upload_file}: {len(entries)} answers")
    if right is None:
        print(f"{path} has no right answers: submit the file as https://github.com/Q-Future/Q-Bench says")
        return
    found = score(entries, right, said)
    print(found.table())
    if args.json:
        write_json(args.json, found.to_dict())


def _as_released(entry: Row) -> Row:
    return {name: value for name, value in entry.items() if name != "question_id"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = score_parser("eval_qbench", "Score answers to Q-Bench, and write its submission file.")
    parser.add_argument(
        "--question-file", type=Path, required=True, help="llvisionqa_dev.json, or another of its files"
    )
    parser.add_argument("--upload-file", type=Path, help="submission to write")
    return parse_and_run(parser, evaluate, argv)


if __name__ == "__main__":
    sys.exit(main())
