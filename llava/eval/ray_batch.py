"""Answers a question file on a Ray cluster: `python -m llava.eval.ray_batch`, with the flags of model_vqa_loader.

Ray Data reads shares of the questions, makes their pictures ready on any node's cores, and hands them to actors that
hold the model. Answers come back to this process, which alone writes: what is in its file is kept, whatever node is
lost. Pictures and checkpoint must be found under the same names on every node.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import pickle
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from llava.command import OneLineParser, integer, real, run_command
from llava.eval.model_vqa_loader import read
from llava.eval.run.answer_file import PER_ROW, AnswerFile, check_settings
from llava.eval.run.batching import BatchLimits
from llava.eval.run.command import (
    STOPPED,
    Defaults,
    make_parser,
    make_preparer,
    open_questions,
    read_inputs,
    read_limits,
    read_sampling,
    report,
    row_maker,
)
from llava.eval.run.inputs import check_asked_images
from llava.eval.run.jsonl import Row
from llava.eval.run.lock import only_run
from llava.eval.run.metadata import checkpoint_hash, run_settings
from llava.eval.run.pictures import Preparer, pack, unpack
from llava.eval.run.progress import Progress
from llava.eval.run.questions import Question
from llava.eval.run.runner import Asked, Runner, pictures_of
from llava.serve.loading import check_model_flags, load_engine

NAME = "ray_batch"
SHARE = 2
"""Full batches' worth of questions that go to an actor at once, and are asked again if it dies over them."""


def parser() -> OneLineParser:
    """The flags: those of model_vqa_loader, and the cluster's."""
    flags = make_parser(NAME, "Answer a question file on a Ray cluster.", Defaults(temperature=0.0, max_new_tokens=128))
    flags.add_argument("--address", help="of the cluster; auto on one of its nodes (default: starts one here)")
    flags.add_argument("--concurrency", type=integer(), default=1, help="actors that hold the model (%(default)s)")
    flags.add_argument("--gpus-per-actor", type=real(), default=0.0, help="may be a fraction (%(default)s)")
    flags.add_argument("--cpus-per-actor", type=real(), default=1.0, help="cores of an actor (%(default)s)")
    return flags


class PictureStage:
    """Makes the pictures of a share ready."""

    def __init__(self, preparer: Preparer, limits: BatchLimits) -> None:
        self.preparer = preparer
        self.limits = limits

    def __call__(self, share: dict[str, Any]) -> dict[str, Any]:
        """Adds what `Runner.run` takes beside the questions."""
        pictures = pictures_of(read_share(share["questions"]), self.limits)
        ready = [pack(self.preparer(picture)) for picture in pictures]
        return {"questions": share["questions"], "ready": pickle.dumps(ready)}


class AnswerStage:
    """Holds the model and answers shares."""

    def __init__(self, args: argparse.Namespace) -> None:
        engine, sampling = load_engine(args), read_sampling(args)
        checkpoint = checkpoint_hash(args.model_path, args.model_base)
        self.make_row = row_maker(args.model_path, run_settings(engine, sampling, args.seed, args, checkpoint))
        self.runner = Runner(engine, sampling, args.seed, read_limits(args))

    def __call__(self, shares: dict[str, np.ndarray]) -> dict[str, list[str]]:
        """Rows of the file of answers, as JSON."""
        rows = []
        for questions, ready in zip(shares["questions"], shares["ready"], strict=True):
            pictures = map(unpack, pickle.loads(ready))  # our own bytes, from the stage before
            for outcomes in self.runner.run(read_share(questions), pictures):
                rows += [json.dumps(self.make_row(outcome)) for outcome in outcomes]
        return {"row": rows}


def write_shares(path: Path, asked: Sequence[Asked], size: int) -> int:
    """Writes questions as JSON lines of `size` each; returns the number of lines."""
    starts = range(0, len(asked), size)
    with path.open("w", encoding="utf-8") as file:
        for start in starts:
            entries = [
                {"index": index, **asdict(question), "image": str(question.image)}
                for index, question in asked[start : start + size]
            ]
            file.write(json.dumps({"questions": json.dumps(entries)}) + "\n")
    return len(starts)


def read_share(text: str) -> list[Asked]:
    """The inverse of `write_shares`, of one line."""
    entries = json.loads(text)
    return [(entry.pop("index"), Question(**{**entry, "image": Path(entry["image"])})) for entry in entries]


def answer_on(args: argparse.Namespace, preparer: Preparer, shares: Path, count: int) -> Iterator[list[Row]]:
    """Runs the cluster; yields rows of the file of answers as they come."""
    import ray  # here, since it is an extra of its own
    from ray.data import ActorPoolStrategy, DataContext

    start_cluster(args)
    try:
        DataContext.get_current().enable_progress_bars = False  # ours tells more
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}  # only this node is sure to have the file
        questions = ray.data.read_json(
            str(shares), lines=True, override_num_blocks=count, num_cpus=0, label_selector=here
        )
        pictures = questions.map(
            PictureStage,
            fn_constructor_args=(preparer, read_limits(args)),
            compute=ActorPoolStrategy(min_size=1, max_size=args.workers),
            num_cpus=1,
        )
        answers = pictures.map_batches(
            AnswerStage,
            fn_constructor_args=(args,),
            batch_size=1,
            compute=ActorPoolStrategy(size=args.concurrency),
            num_gpus=args.gpus_per_actor,
            num_cpus=args.cpus_per_actor,
        )
        for batch in answers.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
            yield [json.loads(row) for row in batch["row"]]
    except ray.exceptions.RayError as error:
        raise RuntimeError(
            f"the cluster failed: {type(error).__name__}: {str(error).strip().splitlines()[-1]}"
        ) from None
    finally:
        ray.shutdown()


def start_cluster(args: argparse.Namespace) -> None:
    """Joins the cluster, or starts one here that counts as many cores as are asked for."""
    import ray

    options: dict[str, Any] = {"logging_level": "warning", "log_to_driver": False}
    if args.address is not None:
        ray.init(args.address, **options)
        return
    cores = max(os.cpu_count() or 1, math.ceil(args.concurrency * args.cpus_per_actor) + args.workers)
    ray.init("local", num_cpus=cores, include_dashboard=False, **options)


def check_rows(
    rows: Sequence[Row], settings: dict[str, Any] | None, answers: AnswerFile | None
) -> dict[str, Any] | None:
    """Raises ValueError unless rows were made with the settings of all before them.

    Args:
        rows: of the file of answers, errors among them.
        settings: of the run, None until the first answer shows them.
        answers: the file, checked when they show; None for one that is started over.

    Returns:
        The run's settings, if they are known.
    """
    for row in rows:
        if "text" not in row:
            continue
        if settings is None:
            settings = {name: value for name, value in row["metadata"].items() if name not in PER_ROW}
            if answers is not None:
                answers.check(settings)
        check_settings("an answer from another node", row, settings)
    return settings


def run(args: argparse.Namespace) -> int:
    """Answers what the file of answers lacks.

    Raises:
        ValueError: impossible flags, a bad question file, images that are not there, answers of another run or one at
            work on them, or nodes that differ.
    """
    limits = read_limits(args)
    args.workers = args.concurrency if args.workers is None else args.workers
    if args.workers < 1:
        raise ValueError(f"--workers is {args.workers}; it must be at least 1 on a cluster")
    if args.address is None:  # nodes of a cluster may have other devices
        check_model_flags(args)
    args.image_folder = args.image_folder.resolve()  # a node's working folder is another
    for name in ("model_path", "model_base"):
        if (path := getattr(args, name)) is not None and Path(path).is_dir():
            setattr(args, name, str(Path(path).resolve()))
    questions = read_inputs(args, read)
    check_asked_images(args, questions)
    preparer = make_preparer(args)
    answers = AnswerFile(args.answers_file)
    answers.check_place(args.question_file)
    with only_run(answers.path):
        return _answer(args, limits, questions, answers, preparer)


def _answer(
    args: argparse.Namespace,
    limits: BatchLimits,
    questions: Sequence[Question],
    answers: AnswerFile,
    preparer: Preparer,
) -> int:
    """Answers what the file of answers lacks, by flags that were checked.

    Nothing is written before an answer shows that the settings are those of the answers so far, or the run has ended.
    """
    args.device = args.device or ("cuda" if args.gpus_per_actor else "cpu")
    answers.check_rows(questions, args.resume)
    todo = open_questions(args, questions, answers)
    settings: dict[str, Any] | None = None
    held: list[Row] = []  # not written yet: errors, which do not show the settings
    progress = Progress(len(todo), show=bool(todo))
    with tempfile.TemporaryDirectory() as scratch, closing(progress):
        shares = Path(scratch) / "shares.jsonl"
        count = write_shares(shares, todo, SHARE * limits.rows)
        for rows in answer_on(args, preparer, shares, count) if todo else ():
            known, settings = settings, check_rows(rows, settings, answers if args.resume else None)
            held += rows
            progress.add(rows)
            if settings is None:
                continue
            if known is None:
                answers.start(args.resume)
            answers.append(held)
            held = []
    if settings is None:
        answers.start(args.resume)
        answers.append(held)
    return report(NAME, answers, args, questions)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    args = parser().parse_args(argv)
    return run_command(NAME, lambda: run(args), interrupted=STOPPED)


if __name__ == "__main__":
    sys.exit(main())
