"""LLaVA-Bench: a judge compares a model's answers with reference answers: `python -m llava.eval.eval_gpt_review_bench`.

LLaVA's command, with its flags and formats. After an interruption the same command continues.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from llava.command import OneLineParser, check_outputs, integer, parse_and_run, read_name
from llava.eval.review.reviews import CATEGORY, UNREAD, build_request, read_captions, read_rules
from llava.eval.score.benchmark import Benchmark
from llava.eval.score.prompts import check_prompts
from llava.eval.score.rows import Row, find_answers, read_answers, read_labelled

if TYPE_CHECKING:
    from llava.eval.review.judge import Judge

RULES = "https://raw.githubusercontent.com/haotian-liu/LLaVA/main/llava/eval/table/rule.json"
DATA = "hf download liuhaotian/llava-bench-in-the-wild --repo-type dataset --local-dir {dir}"

BENCHMARK = Benchmark(
    name="LLaVA-Bench",
    script="llavabench",
    folder="llava-bench-in-the-wild",
    questions="questions.jsonl",
    images="images",
    data="`llava-bench-in-the-wild/`: `liuhaotian/llava-bench-in-the-wild` as it is, LLaVA's `rule.json`",
    measures="a judge's scores, relative to GPT-4's answers, by category",
    needs={
        "questions.jsonl": DATA,
        "context.jsonl": DATA,
        "answers_gpt4.jsonl": DATA,
        "images": DATA,
        "rule.json": f"{RULES}, into {{dir}}",
    },
    labels={
        "--context": "context.jsonl",
        "--rule": "rule.json",
        "--answer-list": "answers_gpt4.jsonl",
    },
    runner="model_vqa",
    scorer="eval_gpt_review_bench",
)


def find_requests(args: argparse.Namespace) -> list[tuple[Row, str]]:
    """Builds the review of each question, without what the judge says, and the judge's request.

    With one file of answers the model's are empty: what is missing shows before it has answered.

    Raises:
        ValueError: a rule, a description or an answer is missing, or an answer is to another question.
    """
    questions = read_labelled(args.check or args.question, ("image", "text", "category"))
    rules = read_rules(args.rule, {CATEGORY + row["category"] for row in questions.values()})
    captions = read_captions(args.context)
    found = []
    for path in args.answer_list:
        answers = read_answers(path)
        check_prompts(path, answers, {key: row["text"] for key, row in questions.items() if key in answers})
        found.append(find_answers(questions, answers, path))
    if len(found) == 1:
        found.append([{**row, "text": ""} for row in found[0]])
    requests = []
    for number, (question, *answers) in enumerate(zip(questions.values(), *found, strict=True), start=1):
        category = CATEGORY + question["category"]
        if question["image"] not in captions:
            raise ValueError(f"{args.context} does not describe {question['image']!r}")
        texts = [answer["text"] for answer in answers]
        request = build_request(captions[question["image"]], question["text"], texts, rules[category])
        ids = {f"answer{n}_id": row.get("answer_id", row["question_id"]) for n, row in enumerate(answers, start=1)}
        review = {"id": number, "question_id": question["question_id"], **ids, "category": category}
        requests.append((review, request))
    return requests


def write_reviews(path: Path, requests: Sequence[tuple[Row, str]], judge: Judge) -> int:
    """Writes the review of each question; those that the file has are kept, except where they give no scores.

    Returns:
        The number of reviews without scores.

    Raises:
        OSError: the judge cannot be reached, or the file cannot be written.
        ValueError: the file has other reviews, or something else.
    """
    from llava.eval.run.answers.jsonl import append_row, format_rows, read_rows, replace
    from llava.eval.run.answers.lock import only_run

    with only_run(path):
        begun = read_rows(path, "a review", lambda row: "tuple" in row, lambda line: line.startswith(b'{"id": '))
        wanted = {review["id"]: (review, request) for review, request in _add_source(requests, judge.model)}
        scored = []
        for number, kept in begun.numbered:
            review, _ = wanted.get(kept.get("id"), (None, ""))
            if review is None or any(kept.get(name) != value for name, value in review.items()):
                raise ValueError(
                    f"{path}:{number} is of another judge, question or answer, so the file stays as it is; name"
                    " another one to write, or delete it"
                )
            if tuple(kept["tuple"]) != UNREAD:
                scored.append(kept)
                del wanted[kept["id"]]
        if not begun.whole or len(scored) < len(begun.numbered):
            replace(path, format_rows(scored))
        unread = 0
        for review, request in wanted.values():
            text, scores = judge.review(request)
            append_row(path, {**review, "content": text, "tuple": list(scores)})
            unread += scores == UNREAD
    return unread


def _add_source(requests: Iterable[tuple[Row, str]], model: str) -> Iterable[tuple[Row, str]]:
    """Adds to each review who gives it and on what, so that a file is not continued with others."""
    for review, request in requests:
        yield {**review, "judge": model, "request": f"sha256:{sha256(request.encode()).hexdigest()[:16]}"}, request


def run(args: argparse.Namespace) -> None:
    """Has the answers reviewed, or only checks the files that the flags name."""
    if args.check:
        find_requests(args)
        print(f"{args.check}: all labels have their questions")
        return
    if len(args.answer_list) != 2 or args.output is None:
        raise ValueError("give two files to --answer-list, the reference's answers and the model's, and --output")
    check_outputs(args, "output")
    from llava.eval.review.judge import Judge

    judge = Judge(args.judge, args.base_url, args.max_tokens)
    requests = find_requests(args)
    unread = write_reviews(args.output, requests, judge)
    print(f"{args.output}: {len(requests)} reviews" + (f", {unread} without scores" if unread else ""))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = OneLineParser(prog="eval_gpt_review_bench", description="Have a judge compare answers with a reference's.")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("-q", "--question", type=Path, help="LLaVA-Bench's questions.jsonl")
    asked.add_argument(
        "--check", type=Path, metavar="QUESTIONS", help="only check that the other files fit these; asks nobody"
    )
    parser.add_argument(
        "-c", "--context", type=Path, required=True, help="its context.jsonl, which describes the images"
    )
    parser.add_argument("-r", "--rule", type=Path, required=True, help="LLaVA's rule.json")
    parser.add_argument(
        "-a", "--answer-list", type=Path, nargs="+", required=True, help="answers of the reference, and of the model"
    )
    parser.add_argument("-o", "--output", type=Path, help="file of the reviews")
    parser.add_argument("--max-tokens", type=integer(), default=1024, help="longest review, in tokens (%(default)s)")
    parser.add_argument("--judge", type=read_name, default="gpt-4-0613", help="the model that reviews (%(default)s)")
    parser.add_argument(
        "--base-url", type=read_name, help="its server (default: OPENAI_BASE_URL, or OpenAI's); the key: OPENAI_API_KEY"
    )
    return parse_and_run(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
