"""ScienceQA: accuracy on all questions, on those with an image, and by subject, context and grade.

`python -m llava.eval.eval_science_qa`. The groups are those of the data set's paper, arXiv 2209.09513.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.eval.score.benchmark import ANNOTATIONS, Benchmark
from llava.eval.score.parse import option_letter
from llava.eval.score.rows import Key, Row, check_object, index_rows, read_json
from llava.eval.score.score import Results, Score, accuracy, run_scorer, score_parser, write_json

SOURCE = "https://github.com/lupantech/ScienceQA (data/scienceqa)"
BENCHMARK = Benchmark(
    name="ScienceQA",
    script="sqa",
    folder="scienceqa",
    questions="llava_test_CQM-A.json",
    images="images/test",
    data="`scienceqa/`: `problems.json`, `pid_splits.json`, `images/test/`",
    measures="all, IMG, by subject, context, grade",
    needs={
        "llava_test_CQM-A.json": ANNOTATIONS,
        "problems.json": f"problems.json of {SOURCE}, into {{dir}}",
        "pid_splits.json": f"pid_splits.json of {SOURCE}, into {{dir}}",
        "images/test": f"the test images of {SOURCE}, as {{dir}}/images/test",
    },
    labels={"--base-dir": ""},
    runner="model_vqa_science",
    flags=("--single-pred-prompt", "--temperature", "0"),
    scorer="eval_science_qa",
)

GROUPS: dict[str, Callable[[Row], bool]] = {
    "IMG": lambda problem: bool(problem["image"]),
    "TXT": lambda problem: bool(problem["hint"]),
    "NO": lambda problem: not problem["image"] and not problem["hint"],
    "NAT": lambda problem: problem["subject"] == "natural science",
    "SOC": lambda problem: problem["subject"] == "social science",
    "LAN": lambda problem: problem["subject"] == "language science",
    "G1-6": lambda problem: read_grade(problem["grade"]) <= 6,
    "G7-12": lambda problem: read_grade(problem["grade"]) > 6,
}
FIELDS = ("choices", "answer", "image", "hint", "subject", "grade")
PROBLEM_TEXTS = ("question", "hint", "lecture", "solution")


def predictions(problems: Mapping[str, Row], said: Mapping[str, str], options: str) -> dict[str, int]:
    """Reads the index of the choice that each problem's answer names; -1 if there is none.

    Raises:
        ValueError: a problem has more choices than there are letters.
    """
    found = {}
    for name, problem in problems.items():
        if (count := len(problem["choices"])) > len(options):
            raise ValueError(f"problem {name!r} has {count} choices; --options names {len(options)} letters, {options}")
        letter = option_letter(said[name], dict(zip(options, problem["choices"], strict=False)))
        found[name] = -1 if letter is None else options.index(letter)
    return found


def score(problems: Mapping[str, Row], predicted: Mapping[str, int]) -> Score:
    """Scores predicted choices.

    Args:
        problems: As in `problems.json`.
        predicted: Problem -> index of a choice, -1 where none was predicted.
    """
    right = {name: predicted[name] == problem["answer"] for name, problem in problems.items()}
    rows = {}
    for group, holds in {"all": lambda _: True, **GROUPS}.items():
        if own := [name for name, problem in problems.items() if holds(problem)]:
            rows[group] = accuracy([right[name] for name in own]) | {"unparsed": sum(predicted[n] < 0 for n in own)}
    return Score("ScienceQA", rows)


def read_problems(base_dir: Path, split: str, fields: Sequence[str] = FIELDS) -> dict[str, Row]:
    """Reads the problems of a split from `pid_splits.json` and `problems.json`; each must have `fields` and choices.

    Raises:
        ValueError: there is no such split, or a problem is missing or wrong, see `read_problem`.
    """
    splits = read_json(base_dir / "pid_splits.json", dict)
    problems = read_json(base_dir / "problems.json", dict)
    if split not in splits:
        raise ValueError(f"{base_dir / 'pid_splits.json'} has no split {split!r}; it has {', '.join(splits)}")
    if not (own := splits[split]):
        raise ValueError(f"split {split!r} of {base_dir / 'pid_splits.json'} is empty")
    if not isinstance(own, list):
        raise ValueError(f"split {split!r} of {base_dir / 'pid_splits.json'} is {own!r}; it must be a list of problems")
    names = [str(name) for name in own]
    if missing := [name for name in names if name not in problems]:
        raise ValueError(f"{base_dir / 'problems.json'} has no problem {missing[0]!r} of the split {split!r}")
    return {
        name: read_problem(f"{base_dir / 'problems.json'}: problem {name!r}", problems[name], fields) for name in names
    }


def read_problem(place: str, problem: Row, fields: Sequence[str]) -> Row:
    """Checks a problem, and makes its choices text, its answer an index of them, and missing texts empty.

    Raises:
        ValueError: it lacks one of `fields`, or one holds something else.
    """
    check_object(place, problem, fields)
    choices, answer = problem["choices"], problem["answer"]
    if not isinstance(choices, list) or not choices or not all(isinstance(text, str | int | float) for text in choices):
        raise ValueError(f"{place}: choices is {choices!r}; it must be a list of texts")
    is_whole = answer.isdecimal() if isinstance(answer, str) else isinstance(answer, float) and answer.is_integer()
    index = int(answer) if is_whole else answer
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(choices):
        raise ValueError(f"{place}: answer is {answer!r}; it must be the index of a choice, 0 to {len(choices) - 1}")
    if "grade" in fields:
        try:
            read_grade(problem["grade"])
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
    texts = {name: problem[name] or "" for name in PROBLEM_TEXTS if name in fields}
    if wrong := [name for name, text in texts.items() if not isinstance(text, str)]:
        raise ValueError(f"{place}: {wrong[0]} is {problem[wrong[0]]!r}; it must be text")
    return {**problem, **texts, "choices": [str(text) for text in choices], "answer": index}


def read_asked(path: Path) -> dict[Key, Row]:
    """Reads LLaVA's question file, a list of `id, conversations`, by id, each with an empty answer.

    Raises:
        ValueError: the file is not such a list.
    """
    entries = read_json(path, list)
    rows = [(f"{path}: entry {n}", {**entry, "text": ""}) for n, entry in enumerate(entries) if isinstance(entry, dict)]
    return index_rows(path, rows, ("conversations",), ("id",))


def score_files(args: argparse.Namespace) -> Score:
    """Reads the files that the flags name, scores them, and writes LLaVA's two files if the flags name them."""
    problems = read_problems(args.base_dir, args.split)
    results = Results.of(args)
    texts = results.texts([(name,) for name in problems], read_asked(results.path) if results.checking else None)
    said = dict(zip(problems, texts, strict=True))
    predicted = predictions(problems, said, "".join(args.options))
    result = score(problems, predicted)
    if results.checking:
        return result
    if args.output_file:
        write_json(args.output_file, split_by_result(problems, said, predicted))
    if args.output_result:
        correct = sum(predicted[name] == problem["answer"] for name, problem in problems.items())
        totals = {"acc": result.rows["all"]["accuracy"], "correct": correct, "count": len(problems)}
        write_json(args.output_result, totals | {"results": predicted, "outputs": said})
    return result


def split_by_result(
    problems: Mapping[str, Row], said: Mapping[str, str], predicted: Mapping[str, int]
) -> dict[str, list[dict[str, str | int]]]:
    """Lists right and wrong answers separately, each with the true choice."""
    kinds: dict[str, list[dict[str, str | int]]] = {"correct": [], "incorrect": []}
    for name, problem in problems.items():
        row = {"question_id": name, "text": said[name], "predicted": predicted[name], "answer": problem["answer"]}
        kinds["correct" if predicted[name] == problem["answer"] else "incorrect"].append(row)
    return kinds


def read_grade(grade: Any) -> int:
    """Reads the number of a grade, "grade7" or 7.

    Raises:
        ValueError: it is something else.
    """
    text = str(grade).removeprefix("grade")
    if not text.isdecimal():
        raise ValueError(f"grade is {grade!r}; it must be 'grade1' to 'grade12'")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = score_parser("eval_science_qa", "Score answers to ScienceQA.")
    parser.add_argument("--base-dir", type=Path, required=True, help="folder of problems.json and pid_splits.json")
    parser.add_argument("--output-file", type=Path, help="write every answer with its truth to this file")
    parser.add_argument("--output-result", type=Path, help="write the predicted choices to this file")
    parser.add_argument("--split", default="test")
    parser.add_argument("--options", nargs="+", default=list("ABCDE"), help="letters of the choices (A B C D E)")
    return run_scorer(parser, score_files, argv, ("output_file", "output_result"))


if __name__ == "__main__":
    sys.exit(main())
