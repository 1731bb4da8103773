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
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from llava.eval.answer_file import PER_ROW, AnswerFile, Row, check_settings
from llava.eval.batch_run import (
    STOPPED,
    Defaults,
    Progress,
    make_parser,
    make_preparer,
    open_questions,
    read_limits,
    read_sampling,
    report,
    row_maker,
)
from llava.eval.batches import BatchLimits
from llava.eval.lock import only_run
from llava.eval.model_vqa_loader import read
from llava.eval.prefetch import Preparer, pack, unpack
from llava.eval.provenance import checkpoint_hash, run_settings
from llava.eval.questions import Question, chunk
from llava.eval.runner import Asked, Runner, pictures_of
from llava.serve.cli import check_model_flags, load_engine
from llava.command import OneLineParser, run_command

NAME = "ray_batch"
SHARE = 2
"""Full batches' worth of questions that go to an actor at once, and are asked again if it dies over them."""


def parser() -> OneLineParser:
    """The flags: those of model_vqa_loader, and the cluster's."""
    flags = make_parser(NAME, "Answer a question file on a Ray cluster.", Defaults(temperature=0.0, max_new_tokens=128))
    flags.add_argument("--address", help="of the cluster; auto on one of its nodes (default: starts one here)")
    flags.add_argument("--concurrency", type=int, default=1, help="actors that hold the model (%(default)s)")
    flags.add_argument("--gpus-per-actor", type=float, default=0.0, help="may be a fraction (%(default)s)")
    flags.add_argument("--cpus-per-actor", type=float, default=1.0, help="cores of an actor (%(default)s)")
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


def check_rows(rows: Sequence[Row], settings: dict[str, Any] | None, answers: AnswerFile) -> dict[str, Any] | None:
    """Raises ValueError unless rows were made with the settings of all before them.

    Args:
        rows: of the file of answers, errors among them.
        settings: of the run, None until the first answer shows them.
        answers: the file, checked when they show.

    Returns:
        The run's settings, if they are known.
    """
    for row in rows:
        if "text" not in row:
            continue
        if settings is None:
            settings = {name: value for name, value in row["metadata"].items() if name not in PER_ROW}
            answers.check(settings)
        check_settings("an answer from another node", row, settings)
    return settings


def run(args: argparse.Namespace) -> int:
    """Answers what the file of answers lacks.

    Raises:
        ValueError: impossible flags, a bad question file, answers of another run or one at work on them, or nodes
            that differ.
    """
    limits = read_limits(args)
    read_sampling(args)
    args.workers = args.concurrency if args.workers is None else args.workers
    for flag in ("concurrency", "workers"):
        if (value := getattr(args, flag)) < 1:
            raise ValueError(f"--{flag} is {value}; it must be at least 1")
    if args.address is None:  # nodes of a cluster may have other devices
        check_model_flags(args)
    args.image_folder = args.image_folder.resolve()  # a node's working folder is another
    for name in ("model_path", "model_base"):
        if (path := getattr(args, name)) is not None and Path(path).is_dir():
            setattr(args, name, str(Path(path).resolve()))
    with only_run(args.answers_file):
        return _answer(args, limits)


def _answer(args: argparse.Namespace, limits: BatchLimits) -> int:
    """Answers what the file of answers lacks, by flags that were checked."""
    questions = read(args)
    preparer = make_preparer(args)
    args.device = args.device or ("cuda" if args.gpus_per_actor else "cpu")
    answers = AnswerFile(args.answers_file)
    answers.start(questions, args.resume)
    todo = open_questions(args, questions, answers)
    shares = args.answers_file.with_name(f"{args.answers_file.stem}.shares.jsonl")
    if todo:
        settings: dict[str, Any] | None = None
        progress = Progress(len(todo), show=True)
        count = write_shares(shares, todo, SHARE * limits.rows)
        try:
            for rows in answer_on(args, preparer, shares.resolve(), count):
                settings = check_rows(rows, settings, answers)
                answers.append(rows)
                progress.add(rows)
        finally:
            progress.close()
            shares.unlink()
    return report(NAME, answers, chunk(questions, args.num_chunks, args.chunk_idx))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    args = parser().parse_args(argv)
    return run_command(NAME, lambda: run(args), interrupted=STOPPED)


if __name__ == "__main__":
    sys.exit(main())
