"""Converts CV-Bench and RealWorldQA from their Parquet files to LLaVA's form: `python scripts/prepare_eval.py`.

Writes `questions.jsonl`, with the data's own fields kept, and `images/` beside the files. A benchmark that needs this
declares its columns in `llava.eval.eval_*`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llava.command import OneLineParser, parse_and_run
from llava.eval.benchmarks import find_benchmarks
from llava.eval.score.benchmark import Benchmark
from qlip.images.pictures import walk

SIGNATURES = {b"\xff\xd8": ".jpg", b"\x89P": ".png", b"RI": ".webp"}
LFS_POINTER = b"version https://git-lfs"
BATCH = 64
SOURCES = "questions.sources.json"
"""File beside questions.jsonl: the Parquet files that the questions are from."""
SHARD = re.compile(r"(?P<start>.+)-\d+-of-(?P<count>\d+)\.parquet")


def read_records(columns: Sequence[str], files: Sequence[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Reads the rows of Parquet files, one file after the other, each with its place.

    Raises:
        FileNotFoundError: a file of a set that its name counts is missing.
        ValueError: a file is not a Parquet file, or a column is missing.
    """
    from pyarrow import ArrowException, ArrowInvalid, parquet  # an extra

    check_shards(files)
    for path in files:
        try:
            file = parquet.ParquetFile(path)
        except ArrowInvalid as error:
            with path.open("rb") as start:
                pointer = start.read(len(LFS_POINTER)) == LFS_POINTER
            why = "git-lfs has left a pointer; `git lfs pull` gets the file" if pointer else error
            raise ValueError(f"{path} is not a Parquet file: {why}") from None
        if missing := [name for name in columns if name not in file.schema_arrow.names]:
            raise ValueError(f"{path} has no column {', '.join(missing)}")
        number = 0
        try:
            for batch in file.iter_batches(BATCH, columns=list(columns)):
                for row in batch.to_pylist():
                    yield f"{path}: row {number}", row
                    number += 1
        except (ArrowException, OSError) as error:  # Arrow raises both for damaged pages
            raise ValueError(f"{path} is damaged after row {number}: {error}; download it again") from None


def find_files(folder: Path) -> list[Path]:
    """Finds the Parquet files anywhere below a folder, links to folders included, in the order of their names.

    Raises:
        FileNotFoundError: there is none.
    """
    found = (path for path in walk(folder) if path.suffix == ".parquet")
    files = sorted(path for path in found if not path.name.startswith("."))  # macOS adds "._NAME.parquet"
    if not files:
        raise FileNotFoundError(f"there is no .parquet file in {folder}")
    return files


def describe_files(files: Sequence[Path], folder: Path) -> str:
    """Formats the Parquet files' names, sizes and times: a changed set of files reads otherwise."""
    stats = [(str(path.relative_to(folder)), path.stat()) for path in files]
    return json.dumps([[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]) + "\n"


def check_shards(files: Sequence[Path]) -> None:
    """Raises FileNotFoundError unless all of NAME-00000-of-00002.parquet and so on are there: a download may have been
    stopped."""
    for path in files:
        if shard := SHARD.fullmatch(path.name):
            start, count = shard["start"], shard["count"]
            names = [f"{start}-{number:0{len(count)}}-of-{count}.parquet" for number in range(int(count))]
            if absent := [name for name in names if not (path.parent / name).is_file()]:
                found = f"{path.parent} lacks {len(absent)} of {len(names)} files, for example {absent[0]}"
                raise FileNotFoundError(f"{found}; download the rest")


def prepare(benchmark: Benchmark, folder: Path) -> int:
    """Writes images, then the question file at once; returns the number of questions.

    Raises:
        FileNotFoundError: the folder, or a part of the benchmark is missing.
        ValueError: a row is not as declared.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    files = find_files(folder)
    sources = describe_files(files, folder)
    (folder / "images").mkdir(exist_ok=True)
    questions = []
    for number, (place, row) in enumerate(read_records(benchmark.columns, files)):
        try:
            made = benchmark.make_question(number, row)
        except ValueError as error:
            raise ValueError(f"{place}: {str(error).removeprefix(f'row {number}: ')}") from None
        content = row["image"].get("bytes") if isinstance(row["image"], dict) else row["image"]
        ending = SIGNATURES.get(content[:2]) if isinstance(content, bytes) else None
        if ending is None:
            found = "null" if content is None else type(content).__name__
            found = f"bytes that begin with {content[:4]!r}" if isinstance(content, bytes) else found
            raise ValueError(f"{place}: image is {found}; it must be a JPEG, PNG or WebP file's bytes")
        name = f"images/{made['question_id']}{ending}"
        (folder / name).write_bytes(content)
        questions.append({**made, "image": name})
    for name, values in benchmark.every.items():
        if missing := sorted(set(values) - {question[name] for question in questions}):
            what = f"{folder} has no questions whose {name} is {' or '.join(missing)}"
            raise FileNotFoundError(f"{what}: a part of {benchmark.name} is missing; download the rest")
    (folder / SOURCES).unlink(missing_ok=True)
    part = folder / "questions.jsonl.part"
    lines = (json.dumps(question, ensure_ascii=False) + "\n" for question in questions)
    part.write_text("".join(lines), encoding="utf-8")
    part.replace(folder / "questions.jsonl")
    (folder / SOURCES).write_text(sources, encoding="utf-8")
    return len(questions)


def is_prepared(folder: Path) -> bool:
    """Whether a folder's questions are those of its Parquet files as they are now."""
    sources = folder / SOURCES
    if not (folder / "questions.jsonl").is_file() or not sources.is_file():
        return False
    return sources.read_text(encoding="utf-8") == describe_files(find_files(folder), folder)


def run(args: argparse.Namespace) -> None:
    """Prepares the benchmark that the flags name."""
    if args.if_changed and is_prepared(args.folder):
        return
    count = prepare(find_benchmarks()[args.benchmark], args.folder)
    print(f"{args.folder / 'questions.jsonl'}: {count} questions")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    prepared = [name for name, benchmark in find_benchmarks().items() if benchmark.columns]
    parser = OneLineParser(prog="prepare_eval", description="Bring a benchmark into LLaVA's form.")
    parser.add_argument("benchmark", choices=prepared)
    parser.add_argument("folder", type=Path, help="folder of its Parquet files")
    parser.add_argument("--if-changed", action="store_true", help="do nothing if the questions are of these very files")
    return parse_and_run(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
