"""TextVQA: the VQA soft accuracy on its validation questions: `python -m llava.eval.eval_textvqa`.

LLaVA's question file names a question by its image, which may have several, so answers match annotations by image and
question text. A question that occurs twice for an image has two answers, in the files' order.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from llava.eval.score.benchmark import ANNOTATIONS, Benchmark
from llava.eval.score.rows import Key, Row, format_key, index_rows, place_rows, read_json
from llava.eval.score.score import Results, Score, accuracy, run_scorer, score_parser
from llava.eval.score.vqa import ANNOTATORS, soft_accuracy

BENCHMARK = Benchmark(
    name="TextVQA",
    script="textvqa",
    folder="textvqa",
    questions="llava_textvqa_val_v051_ocr.jsonl",
    images="train_images",
    data="`textvqa/`: `TextVQA_0.5.1_val.json`, `train_images/`",
    measures="VQA soft accuracy",
    needs={
        "llava_textvqa_val_v051_ocr.jsonl": ANNOTATIONS,
        "TextVQA_0.5.1_val.json": "https://dl.fbaipublicfiles.com/textvqa/data/TextVQA_0.5.1_val.json, into {dir}",
        "train_images": "https://dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip, unpacked in {dir}",
    },
    labels={"--annotation-file": "TextVQA_0.5.1_val.json"},
    scorer="eval_textvqa",
)

_OLD_FORM = re.compile(r"Question: (.*?) Short answer:", re.DOTALL)


def score(annotations: Sequence[Row], said: Sequence[str]) -> Score:
    """Scores answers.

    Args:
        annotations: Each with `answers`, those of ten annotators.
        said: The model's answers, in the same order.
    """
    values = [soft_accuracy(text, row["answers"]) for row, text in zip(annotations, said, strict=True)]
    return Score("TextVQA", {"all": accuracy(values)})


def find_question(prompt: str) -> str:
    """Finds the question in a prompt of LLaVA's TextVQA files, in lower case.

    It is the first line that is not an OCR reference; in the older form it comes before `Short answer:`.

    Raises:
        ValueError: the prompt has neither form.
    """
    if prompt.startswith("OCR tokens: "):
        if not (found := _OLD_FORM.search(prompt)):
            raise ValueError(f"no question in the prompt {prompt!r}")
        return found[1].lower()
    lines = [line for line in prompt.split("\n") if line.strip() and not line.startswith("Reference OCR token:")]
    if not lines:
        raise ValueError(f"no question in the prompt {prompt!r}")
    return lines[0].strip().lower()


def number_duplicates(rows: Iterable[tuple[str, Row]]) -> Iterator[tuple[str, Row]]:
    """Yields rows with their places; a question's second row about an image gets "(2)" after it, and so on."""
    seen: Counter[Key] = Counter()
    for place, row in rows:
        key = (str(row.get("image_id")), str(row.get("question", "")).strip().lower())
        seen[key] += 1
        yield place, row | {"asked": key, "question": key[1] if seen[key] == 1 else f"{key[1]} ({seen[key]})"}


def index_by_question(results: Results) -> dict[Key, Row]:
    """Reads the rows of an answers file by (image, question).

    Raises:
        ValueError: a row lacks a field, or its prompt has no known form.
    """
    lines = [(place, row | {"place": place}) for place, row in results.rows()]
    said = index_rows(results.path, lines, ("question_id", "prompt", "text"), ("place",)).values()
    rows = []
    for row in said:
        try:
            question = find_question(str(row["prompt"]))
        except ValueError as error:
            raise ValueError(f"{row['place']}: {error}") from None
        rows.append((row["place"], {**row, "image_id": row["question_id"], "question": question}))
    return index_rows(results.path, number_duplicates(rows), ("text",), ("image_id", "question"))


def check_surplus(annotations: Mapping[Key, Row], answers: Mapping[Key, Row]) -> None:
    """Raises ValueError if a question has more answers than annotations."""
    for key, row in answers.items():
        if key not in annotations and row["asked"] in annotations:
            raise ValueError(f"{row['place']}: {format_key(row['asked'])} appears twice")


def score_files(args: argparse.Namespace) -> Score:
    """Reads the files that the flags name and scores them; of a folder of answers files, each gets a row."""
    content = read_json(args.annotation_file, dict)
    if "data" not in content:
        raise ValueError(f"{args.annotation_file} has no list `data`")
    places = place_rows(args.annotation_file, "data", content["data"])
    annotations = index_rows(args.annotation_file, number_duplicates(places), ("answers",), ("image_id", "question"))
    for key, row in annotations.items():
        if not isinstance(row["answers"], list) or not all(isinstance(answer, str) for answer in row["answers"]):
            words = f"{args.annotation_file}: answers of {format_key(key)} is {row['answers']!r}"
            raise ValueError(f"{words}; it must list the annotators' texts")
        if (count := len(row["answers"])) != ANNOTATORS:
            words = f"{args.annotation_file}: {format_key(key)} has {count} annotators' answers"
            raise ValueError(f"{words}; the soft accuracy needs {ANNOTATORS}")
    if args.result_dir is None:
        return score(list(annotations.values()), find_answer_texts(annotations, Results.of(args), args.annotation_file))
    others = (".errors.jsonl", ".limit.jsonl")  # questions without an answer, and answers of a trial
    files = [path for path in sorted(args.result_dir.glob("*.jsonl")) if not path.name.endswith(others)]
    if not files:
        raise ValueError(f"--result-dir {args.result_dir} holds no *.jsonl")
    scores = {
        path.name: score(
            list(annotations.values()), find_answer_texts(annotations, Results(path), args.annotation_file)
        )
        for path in files
    }
    return Score("TextVQA", {name: single.rows["all"] for name, single in scores.items()})


def find_answer_texts(annotations: Mapping[Key, Row], results: Results, labels: Path) -> list[str]:
    """Finds the answers in a file, in the annotations' order; raises as `index_by_question` and `Results.texts` do."""
    answers = index_by_question(results)
    check_surplus(annotations, answers)
    return results.texts(annotations, answers, labels)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = score_parser("eval_textvqa", "Score answers to TextVQA.", result_dir=True)
    parser.add_argument("--annotation-file", type=Path, required=True, help="TextVQA_0.5.1_val.json")
    return run_scorer(parser, score_files, argv)


if __name__ == "__main__":
    sys.exit(main())
