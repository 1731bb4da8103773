"""Turns CV-Bench and RealWorldQA as their hubs give them into LLaVA's form: `python scripts/prepare_eval.py`.

Reads the Parquet files in a folder and writes `questions.jsonl`, a row a question with the data's own fields kept, and
`images/` there. The other benchmarks need no preparation.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.command import OneLineParser, parse_and_run

COLUMNS = {
    "cvbench": ("type", "task", "image", "prompt", "answer", "source"),
    "realworldqa": ("image", "question", "answer"),
}
LETTER_ONLY = "Answer with the option's letter from the given choices directly."
SIGNATURES = {b"\xff\xd8": ".jpg", b"\x89P": ".png", b"RI": ".webp"}
BATCH = 64


def question(benchmark: str, number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """The row of the question file, but for its image."""
    if benchmark == "realworldqa":
        return {"question_id": number, "text": row["question"].strip(), "answer": row["answer"]}
    own = {name: row[name] for name in ("type", "task", "source", "answer")}
    return {
        "question_id": number,
        "text": f"{row['prompt'].strip()}\n{LETTER_ONLY}",
        "category": row["type"],
        **own,
    }


def read_records(benchmark: str, folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of all Parquet files below a folder, in the order of the files' names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing.
    """
    from pyarrow import parquet  # here, since only this command needs it

    files = sorted(folder.rglob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"there is no .parquet file in {folder}")
    for path in files:
        file = parquet.ParquetFile(path)
        if missing := [name for name in COLUMNS[benchmark] if name not in file.schema_arrow.names]:
            raise ValueError(f"{path} has no column {', '.join(missing)}")
        for batch in file.iter_batches(BATCH, columns=list(COLUMNS[benchmark])):
            yield from batch.to_pylist()


def prepare(benchmark: str, folder: Path) -> int:
    """Writes questions and pictures, the question file last and whole; returns how many questions there are."""
    (folder / "images").mkdir(exist_ok=True)
    lines = []
    for number, row in enumerate(read_records(benchmark, folder)):
        made = question(benchmark, number, row)
        content = row["image"]["bytes"] if isinstance(row["image"], dict) else row["image"]
        ending = SIGNATURES.get(content[:2]) if isinstance(content, bytes) else None
        if ending is None:
            raise ValueError(f"row {number}: image is no JPEG, PNG or WebP file")
        name = f"images/{made['question_id']}{ending}"
        (folder / name).write_bytes(content)
        lines.append(json.dumps({**made, "image": name}, ensure_ascii=False) + "\n")
    part = folder / "questions.jsonl.part"
    part.write_text("".join(lines), encoding="utf-8")
    part.replace(folder / "questions.jsonl")
    return len(lines)


def command(args: argparse.Namespace) -> None:
    """Prepares what the flags name."""
    print(f"{args.folder / 'questions.jsonl'}: {prepare(args.benchmark, args.folder)} questions")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = OneLineParser(prog="prepare_eval", description="Bring a benchmark into LLaVA's form.")
    parser.add_argument("benchmark", choices=tuple(COLUMNS))
    parser.add_argument("folder", type=Path, help="where its Parquet files lie")
    return parse_and_run(parser, command, argv)


if __name__ == "__main__":
    sys.exit(main())
