"""Averages the reviews of `eval_gpt_review_bench`: `python -m llava.eval.summarize_gpt_review`. LLaVA's command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.command import OneLineParser, check_outputs, parse_and_run
from llava.eval.review.reviews import average_scores, read_reviews
from llava.eval.score.score import write_json

BEGINNINGS = ("gpt4_text", "reviews_", "review_")
"""Begin the names of files of reviews, in a folder that is not called so itself."""


def find_files(args: argparse.Namespace) -> list[Path]:
    """Finds the files that the flags name, those of a folder by their names.

    Raises:
        ValueError: there is none.
    """
    folder: Path | None = args.dir
    if args.files:
        files = [folder / file if folder else file for file in args.files]
    elif folder is None:
        raise ValueError("give --files, or a folder of reviews by --dir")
    else:
        files = sorted(folder.rglob("*.jsonl"))
        if "review" not in str(folder):
            files = [file for file in files if file.name.startswith(BEGINNINGS)]
    names = {file: name_run(file, folder) for file in files}
    chosen = [file for file in files if all(part in names[file] for part in args.select)]
    if args.version is not None:
        chosen = [file for file in chosen if args.version == ("0613" if "0613" in names[file] else "0314")]
    if not chosen:
        raise ValueError(f"no file of reviews is left of {len(files)}; look at --dir, --select and --version")
    return chosen


def name_run(file: Path, folder: Path | None) -> str:
    """Names what a file's reviews are of; a run called OWNER/MODEL has a folder below that of all reviews."""
    below = folder is not None and file.parent != folder and file.is_relative_to(folder)
    above = f"{file.parent.relative_to(folder)}/" if below else ""
    return above + file.name.replace("gpt4_text_", "").removesuffix(".jsonl")


def run(args: argparse.Namespace) -> None:
    """Prints the averages of each file, and writes those of the only one to `--json`."""
    files = find_files(args)
    if args.json and len(files) > 1:
        raise ValueError(f"--json takes the averages of one file; here are {len(files)}")
    check_outputs(args, "json")
    for file in files:
        score = average_scores(name_run(file, args.dir), read_reviews(file), args.ignore)
        print(score.table())
        if args.json:
            write_json(args.json, score.to_dict())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = OneLineParser(prog="summarize_gpt_review", description="Average a judge's reviews.")
    parser.add_argument("-d", "--dir", type=Path, help="folder of the files")
    parser.add_argument("-f", "--files", type=Path, nargs="*", default=[], help="files (default: the folder's)")
    parser.add_argument("-s", "--select", nargs="*", default=[], help="what a file's name must hold")
    parser.add_argument("-v", "--version", choices=("0314", "0613"), help="of GPT-4, by the file's name")
    parser.add_argument("-i", "--ignore", nargs="*", default=[], help="question_id of questions to leave out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the averages to this file")
    return parse_and_run(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
