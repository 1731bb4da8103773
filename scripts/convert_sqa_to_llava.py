"""Converts ScienceQA's problems to LLaVA's conversations, for training and for `model_vqa_science`.

`python scripts/convert_sqa_to_llava.py convert_to_llava --base-dir DIR --split train --prompt-format QCM-LEA` writes
`DIR/llava_train_QCM-LEA.json`. A format lists the parts of the question and of the answer, in order: Q question,
C context, M options, L lecture, E explanation, A answer. "QCM-LEPA" puts each part of the answer on its own line.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.command import OneLineParser, parse_and_run
from llava.eval.eval_science_qa import read_problems
from llava.eval.score.rows import Row
from llava.eval.score.score import write_json

LETTERS = "ABCDE"
FIELDS = ("question", "choices", "answer", "hint", "image", "lecture", "solution")
FORMAT = re.compile(r"([QCMLE]+)-([LEA]*A[LE]*|LEPA)")


def texts_of(problem: Mapping[str, Any]) -> dict[str, str]:
    """Builds the text of each letter of a format; a line feed that is spelt out, backslash and n, becomes one."""
    return {
        "Q": f"Question: {problem['question']}",
        "C": f"Context: {problem['hint'].strip() or 'N/A'}",
        "M": "Options: " + " ".join(f"({LETTERS[i]}) {text}" for i, text in enumerate(problem["choices"])),
        "L": problem["lecture"].replace("\\n", "\n"),
        "E": problem["solution"].replace("\\n", "\n"),
        "A": LETTERS[problem["answer"]],
    }


def question_and_answer(problem: Mapping[str, Any], prompt_format: str) -> tuple[str, str]:
    """Builds the question and the answer in a format.

    Raises:
        ValueError: there is no such format.
    """
    if not (match := FORMAT.fullmatch(prompt_format)):
        raise ValueError(f"--prompt-format is {prompt_format!r}; allowed are letters of QCMLE, '-' and A among L and E")
    texts = texts_of(problem)
    lines = [
        "BECAUSE: " + " ".join(texts[letter] for letter in part) if part[0] in "LE" else texts[part]
        for part in re.findall(r"[LE]+|.", match[1])
    ]
    question = tidy("\n".join(lines)).removeprefix("Question: ")
    if match[2] == "LEPA":
        before = [f"{name}: {texts[k]}\n" for name, k in (("LECTURE", "L"), ("SOLUTION", "E")) if texts[k].strip()]
        return question, tidy("".join(before) + f"###\nANSWER: {texts['A']}.")
    first, last = (" ".join(texts[letter] for letter in part) for part in match[2].split("A"))
    answer = f"{first} The answer is {texts['A']}." + (f" BECAUSE: {last}" if last.strip() else "")
    return question, tidy(answer)


def tidy(text: str) -> str:
    """Removes double blanks, and a "BECAUSE:" without a reason."""
    return text.replace("  ", " ").strip().removesuffix("BECAUSE:").strip()


def convert(args: argparse.Namespace) -> None:
    """Writes the file that the flags ask for."""
    problems = read_problems(args.base_dir, args.split, FIELDS)
    rows = []
    for name, problem in problems.items():
        if len(problem["choices"]) > len(LETTERS):
            raise ValueError(
                f"problem {name!r} has {len(problem['choices'])} choices; at most {len(LETTERS)} have letters"
            )
        question, answer = question_and_answer(problem, args.prompt_format)
        row: Row = {"id": name}
        if not isinstance(problem["image"], str | None):
            raise ValueError(f"problem {name!r}: image is {problem['image']!r:.80}; it must be a file's name")
        if problem["image"]:
            row["image"] = f"{name}/{problem['image']}"
            question += "\n<image>"
        if args.task == "convert_to_llava":
            row["conversations"] = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        else:
            row |= {"instruction": question, "output": answer}
        rows.append(row)
    stem = f"{args.split}_{args.prompt_format}"
    if args.task == "convert_to_llava":
        out = args.base_dir / f"llava_{stem}.json"
        write_json(out, rows)
    else:
        out = args.base_dir / f"scienceqa_{stem}.jsonl"
        out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{out}: {len(rows)} samples")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = OneLineParser(prog="convert_sqa_to_llava", description="Write ScienceQA as LLaVA's conversations.")
    parser.add_argument("task", choices=("convert_to_llava", "convert_to_jsonl"), help="LLaVA's JSON, or JSON lines")
    parser.add_argument("--base-dir", "--base_dir", type=Path, required=True, help="folder of problems.json")
    parser.add_argument("--split", required=True, help="train, val, minival, test, minitest")
    parser.add_argument("--prompt-format", "--prompt_format", help="by default QCM-LEA, and QCM-LEPA for JSON lines")
    return parse_and_run(parser, run, argv)


def run(args: argparse.Namespace) -> None:
    """Fills in the default format and converts."""
    args.prompt_format = (
        args.prompt_format or {"convert_to_llava": "QCM-LEA", "convert_to_jsonl": "QCM-LEPA"}[args.task]
    )
    convert(args)


if __name__ == "__main__":
    sys.exit(main())
