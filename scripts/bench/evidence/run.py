"""Runs experiments and keeps their answers: `python -m scripts.bench.evidence.run --experiments rivals --split test`.

Writes one JSON line per checkpoint, way and set; after an interruption, the same command continues. `python -m
scripts.bench.evidence.report` makes the tables and figures of docs/RESULTS.md from them.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.command import OneLineParser, integer, parse_and_run
from llava.utils import demo_model_path, device_flag
from scripts.bench.evidence.answering.answer_log import ANSWERS_FILE, AnswerLog, marks
from scripts.bench.evidence.answering.experiments import EXPERIMENTS
from scripts.bench.evidence.answering.flags import add_split_flag, named_path
from scripts.bench.evidence.answering.scene_sets import SCENES, SET_NAMES
from scripts.bench.evidence.answering.variants import Variant

if TYPE_CHECKING:
    from scripts.bench.evidence.answering.sets import QuestionSet
    from scripts.bench.evidence.answering.subject import Examined, Subject

logger = logging.getLogger(__name__)


def cells(
    names: Sequence[str], sets: Sequence[str], folders: Sequence[Path], ways: Sequence[str] = ()
) -> list[tuple[Variant, str | Path]]:
    """Lists every way and set of some experiments, ordered by set so that each is drawn once; pairs may repeat.

    Args:
        names: of the experiments.
        sets: names of the generated sets to take; all, if none is named.
        folders: question sets to use instead of the generated ones.
        ways: names of the ways to take; all, if none is named.

    Raises:
        ValueError: the experiments have no way of such a name.
    """
    known = {way.name for name in names for way in EXPERIMENTS[name].ways}
    if unknown := [way for way in ways if way not in known]:
        raise ValueError(f"the experiments have no way {unknown[0]!r}; their ways are {'; '.join(sorted(known))}")
    pairs = [
        (way, chosen)
        for name in names
        for way in EXPERIMENTS[name].ways
        if not ways or way.name in ways
        for chosen in folders or [wanted for wanted in EXPERIMENTS[name].sets if not sets or wanted in sets]
    ]
    return sorted(pairs, key=lambda pair: str(pair[1]))


def run(
    subjects: dict[str, Subject],
    pairs: Sequence[tuple[Variant, str | Path]],
    split: str,
    scenes: int,
    log: AnswerLog,
) -> None:
    """Examines every subject in every way on every set of some pairs that the log does not hold yet."""
    from scripts.bench.evidence.answering.sets import draw_set, read_set

    todo = [(model, way, chosen) for way, chosen in pairs for model in subjects]
    for model, way, _ in todo:
        subjects[model].settings(way)  # fails here, before the work begins, if a prior is missing
    drawn: QuestionSet | None = None
    for number, (model, way, chosen) in enumerate(todo, start=1):
        label = chosen if isinstance(chosen, str) else chosen.name
        row = {"model": model, "split": split, "set": label, "scenes": scenes}
        row["way"] = way.key(subjects[model].own)
        if log.has(row):
            continue
        if drawn is None or drawn.name != label:
            drawn = draw_set(chosen, split, scenes) if isinstance(chosen, str) else read_set(chosen)
        begun = time.monotonic()
        found = subjects[model].examine(way, drawn)
        log.add(row | to_cell(drawn, found) | {"seconds": round(time.monotonic() - begun, 1)})
        share, tokens = sum(map(sum, found.right)) / sum(map(len, found.right)), found.tokens
        logger.info(
            "%d/%d %s %s %s: %.1f %% with %.1f tokens in %.1f s",
            number, len(todo), model, label, way.name, 100 * share, sum(tokens) / len(tokens), time.monotonic() - begun,
        )  # fmt: skip


def to_cell(questions: QuestionSet, found: Examined) -> dict[str, Any]:
    """Builds what is kept of a cell's answers, ready for JSON."""
    return marks(questions, found.right) | {"tokens": found.tokens, "flops": [round(count) for count in found.flops]}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="run", description="Run the experiments of docs/RESULTS.md.")
    parser.add_argument("--experiments", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument(
        "--sets", nargs="+", choices=SET_NAMES, default=[], metavar="SET", help="only these of the experiments' sets"
    )
    parser.add_argument(
        "--ways", nargs="+", default=[], metavar="WAY", help="only these of the experiments' ways, by their names"
    )
    parser.add_argument(
        "--questions", type=Path, nargs="+", default=[], metavar="DIR", help="sets in LLaVA's format, not scenes"
    )
    add_split_flag(parser)
    parser.add_argument(
        "--model", type=named_path, nargs="+", default=[("seed 1", demo_model_path())], help="NAME=CHECKPOINT ..."
    )
    parser.add_argument("--prior", type=named_path, nargs="+", default=[], help="MODEL/KIND=FILE of `qlip fit`")
    parser.add_argument(
        "--scenes", type=integer(), default=SCENES, help="scenes a set, five questions each (%(default)s)"
    )
    parser.add_argument("--answers-file", type=Path, default=ANSWERS_FILE, help="file of the answers (%(default)s)")
    parser.add_argument("--device", type=device_flag, default=None)
    parser.add_argument("--threads", type=integer(), default=os.cpu_count())
    parser.add_argument("--batch-tokens", type=integer(), default=4096, help="tokens of a batch of questions")
    return parse_and_run(parser, command, argv)


def command(options: argparse.Namespace) -> None:
    """Runs the experiments; cells whose answers are in the file are not run again.

    Raises:
        ValueError: a way is unknown.
    """
    pairs = cells(options.experiments, options.sets, options.questions, options.ways)
    log = AnswerLog(options.answers_file)
    import torch

    from llava.utils import default_device
    from scripts.bench.evidence.answering.subject import Subject

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    torch.set_num_threads(options.threads)
    device = options.device or default_device()
    subjects = {}
    for name, path in options.model:
        priors = {key.partition("/")[2]: Path(file) for key, file in options.prior if key.partition("/")[0] == name}
        subjects[name] = Subject(path, priors, device, options.batch_tokens)
    run(subjects, pairs, options.split, options.scenes, log)


if __name__ == "__main__":
    sys.exit(main())
