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

SIGNATURES = {b"\xff\xd8": ".jpg", b"\x89P": ".png", b"RI": ".webp"}
LFS_POINTER = b"version https://git-lfs"
BATCH = 64
SHARD = re.compile(r"(?P<start>.+)-\d+-of-(?P<count>\d+)\.parquet")


def read_records(columns: Sequence[str], folder: Path) -> Iterator[dict[str, Any]]:
    """Reads the rows of all Parquet files below a folder, in the order of the files' names.

    Raises:
        FileNotFoundError: there is no such file, or a file of a set that its name counts is missing.
        ValueError: a file is not a Parquet file, or a column is missing.
    """
    from pyarrow import ArrowInvalid, parquet  # an extra

    files = sorted(folder.rglob("[!.]*.parquet"))  # macOS adds "._NAME.parquet"
    if not files:
        raise FileNotFoundError(f"there is no .parquet file in {folder}")
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
        for batch in file.iter_batches(BATCH, columns=list(columns)):
            yield from batch.to_pylist()


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
    """Writes images, then the question file at once; returns the number of questions."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    (folder / "images").mkdir(exist_ok=True)
    lines = []
    for number, row in enumerate(read_records(benchmark.columns, folder)):
        made = benchmark.make_question(number, row)
        content = row["image"].get("bytes") if isinstance(row["image"], dict) else row["image"]
        ending = SIGNATURES.get(content[:2]) if isinstance(content, bytes) else None
        if ending is None:
            raise ValueError(f"row {number}: image is not a JPEG, PNG or WebP file")
        name = f"images/{made['question_id']}{ending}"
        (folder / name).write_bytes(content)
        lines.append(json.dumps({**made, "image": name}, ensure_ascii=False) + "\n")
    part = folder / "questions.jsonl.part"
    part.write_text("".join(lines), encoding="utf-8")
    part.replace(folder / "questions.jsonl")
    return len(lines)


def run(args: argparse.Namespace) -> None:
    """Prepares the benchmark that the flags name."""
    count = prepare(find_benchmarks()[args.benchmark], args.folder)
    print(f"{args.folder / 'questions.jsonl'}: {count} questions")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    prepared = [name for name, benchmark in find_benchmarks().items() if benchmark.columns]
    parser = OneLineParser(prog="prepare_eval", description="Bring a benchmark into LLaVA's form.")
    parser.add_argument("benchmark", choices=prepared)
    parser.add_argument("folder", type=Path, help="folder of its Parquet files")
    return parse_and_run(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
