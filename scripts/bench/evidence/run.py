"""Runs experiments and keeps their answers: `python -m scripts.bench.evidence.run --experiments rivals --split test`.

One JSON line per checkpoint, way and set; a run that was stopped goes on with the lines that are missing. The tables
and figures of docs/RESULTS.md are made of them by `python -m scripts.bench.evidence.report`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from llava.command import OneLineParser, integer, parse_and_run
from llava.eval.run.jsonl import Rows, append_row, read_rows, replace
from llava.utils import default_device, demo_model_path, device_flag
from scripts.bench.evidence.experiments import EXPERIMENTS
from scripts.bench.evidence.sets import SCENE_SETS, SCENES, SPLITS, QuestionSet, draw_set, read_set
from scripts.bench.evidence.ways import Subject, Way

logger = logging.getLogger(__name__)

JOURNAL = Path("evidence/answers.jsonl")
"""Where answers are kept unless the command line says otherwise."""


def cells(names: Sequence[str], sets: Sequence[str], folders: Sequence[Path]) -> list[tuple[Way, str | Path]]:
    """Every way and set of some experiments, by sets, so that each is drawn once; pairs may repeat.

    Args:
        names: of the experiments.
        sets: names of the generated sets to take; all, if none is named.
        folders: question sets to use in place of the generated ones.
    """
    pairs = [
        (way, chosen)
        for name in names
        for way in EXPERIMENTS[name].ways
        for chosen in folders or [wanted for wanted in EXPERIMENTS[name].sets if not sets or wanted in sets]
    ]
    return sorted(pairs, key=lambda pair: str(pair[1]))


CELL = ("model", "split", "set", "way", "scenes")
"""What tells one line of the journal from another."""


def read_cells(path: Path) -> Rows:
    """The lines of a journal; raises ValueError where the file is another kind."""
    return read_rows(path, "cell of these experiments", lambda row: set(CELL) <= set(row), _begins_row)


class Journal:
    """The lines that are done, in a file that only grows."""

    def __init__(self, path: Path) -> None:
        """
        Args:
            path: Of the file, which need not exist.

        Raises:
            ValueError: it is another kind of file.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = read_cells(path)
        if not rows.whole:
            replace(path, rows.content)
        self.done = {_key(row) for _, row in rows.numbered}

    def has(self, row: dict[str, Any]) -> bool:
        """Whether the row's cell is done."""
        return _key(row) in self.done

    def add(self, row: dict[str, Any]) -> None:
        """Writes a line so that it survives a crash."""
        append_row(self.path, row)
        self.done.add(_key(row))


def _key(row: dict[str, Any]) -> str:
    return json.dumps({name: row[name] for name in CELL}, sort_keys=True)


def _begins_row(line: bytes) -> bool:
    opening = b'{"model": '
    return line.startswith(opening) or opening.startswith(line)


def run(
    subjects: dict[str, Subject],
    names: Sequence[str],
    split: str,
    scenes: int,
    journal: Journal,
    sets: Sequence[str] = (),
    folders: Sequence[Path] = (),
) -> None:
    """Examines every subject in every cell that the journal does not hold yet."""
    todo = [(model, way, chosen) for way, chosen in cells(names, sets, folders) for model in subjects]
    for model, way, _ in todo:
        subjects[model].settings(way)  # a prior that is not given should show before the work begins
    drawn: QuestionSet | None = None
    for number, (model, way, chosen) in enumerate(todo, start=1):
        label = chosen if isinstance(chosen, str) else chosen.name
        row = {"model": model, "split": split, "set": label, "scenes": scenes}
        row["way"] = way.key(subjects[model].own)
        if journal.has(row):
            continue
        if drawn is None or drawn.name != label:
            drawn = draw_set(chosen, split, scenes) if isinstance(chosen, str) else read_set(chosen)
        begun = time.monotonic()
        tokens, right = subjects[model].examine(way, drawn)
        journal.add(row | marks(drawn, right) | {"tokens": tokens, "seconds": round(time.monotonic() - begun, 1)})
        share = sum(map(sum, right)) / sum(map(len, right))
        logger.info(
            "%d/%d %s %s %s: %.1f %% with %.1f tokens in %.1f s",
            number, len(todo), model, label, way.name, 100 * share, sum(tokens) / len(tokens), time.monotonic() - begun,
        )  # fmt: skip


def marks(questions: QuestionSet, right: Sequence[Sequence[bool]]) -> dict[str, Any]:
    """By kind: a string with "1" for every right answer, and the number of the picture that each was about."""
    strings: dict[str, str] = {}
    owners: dict[str, list[int]] = {}
    for picture, (asked, row) in enumerate(zip(questions.questions, right, strict=True)):
        for item, good in zip(asked, row, strict=True):
            strings[item.category] = strings.get(item.category, "") + str(int(good))
            owners.setdefault(item.category, []).append(picture)
    return {"right": strings, "pictures": owners}


def named_path(text: str) -> tuple[str, str]:
    """`NAME=PATH` from the command line."""
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r}; it must be NAME=PATH")
    return name, path


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = OneLineParser(prog="run", description="Run the experiments of docs/RESULTS.md.")
    parser.add_argument("--experiments", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--sets", nargs="+", choices=SCENE_SETS, default=[], help="only these of the experiments' sets")
    parser.add_argument(
        "--questions", type=Path, nargs="+", default=[], metavar="DIR", help="sets in LLaVA's format, not scenes"
    )
    parser.add_argument("--split", choices=SPLITS, default="validation")
    parser.add_argument(
        "--model", type=named_path, nargs="+", default=[("seed 1", demo_model_path())], help="NAME=CHECKPOINT ..."
    )
    parser.add_argument("--prior", type=named_path, nargs="+", default=[], help="MODEL/KIND=FILE of `qlip fit`")
    parser.add_argument(
        "--scenes", type=integer(), default=SCENES, help="scenes a set, five questions each (%(default)s)"
    )
    parser.add_argument("--journal", type=Path, default=JOURNAL, help="file of the answers")
    parser.add_argument("--device", type=device_flag, default=None)
    parser.add_argument("--threads", type=integer(), default=os.cpu_count())
    parser.add_argument("--batch-tokens", type=integer(), default=4096, help="tokens of a batch of questions")
    return parse_and_run(parser, command, argv)


def command(options: argparse.Namespace) -> None:
    """Runs what the flags name; what the journal holds is not run again."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    torch.set_num_threads(options.threads)
    device = options.device or default_device()
    subjects = {}
    for name, path in options.model:
        priors = {key.partition("/")[2]: Path(file) for key, file in options.prior if key.partition("/")[0] == name}
        subjects[name] = Subject(path, priors, device, options.batch_tokens)
    journal = Journal(options.journal)
    run(subjects, options.experiments, options.split, options.scenes, journal, options.sets, options.questions)


if __name__ == "__main__":
    sys.exit(main())
