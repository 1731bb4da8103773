"""Answers a question file on a Ray cluster.

Ray Data reads shares of the questions, prepares their images on any node's cores, and passes them to actors that hold
the model. The answers come back to this process, which alone writes the file, so a lost node loses none of them.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import pickle
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llava.eval.run.answers.answer import row_maker
from llava.eval.run.answers.jsonl import Row
from llava.eval.run.answers.metadata import checkpoint_hash, run_settings
from llava.eval.run.answers.recording import find_unanswered, open_answers, record, report
from llava.eval.run.batch_run import make_preparer
from llava.eval.run.flags import read_limits, read_sampling
from llava.eval.run.inputs.checks import read_inputs
from llava.eval.run.inputs.preparation import unpack
from llava.eval.run.inputs.questions import read_lines
from llava.eval.run.runner import Runner
from llava.eval.run.shares import ImageStage, read_share, write_shares
from llava.model.vision.preparer import Preparer
from llava.serve.loading import check_model_flags, load_engine

BATCHES_PER_TASK = 2
"""Full batches' worth of questions that an actor gets at once, and that are asked again if it dies."""

CHAINED = "\n\n(?:The above exception was the direct cause|During handling of the above exception)[^\n]*\n\n"
"""What Python writes between the tracebacks of an error and of the one that was raised from it."""


class AnswerStage:
    """Holds the model and answers shares."""

    def __init__(self, args: argparse.Namespace) -> None:
        engine, sampling = load_engine(args), read_sampling(args)
        checkpoint = checkpoint_hash(args.model_path, args.model_base)
        self.make_row = row_maker(args.model_path, run_settings(engine, sampling, args.seed, args, checkpoint))
        self.runner = Runner(engine, sampling, args.seed, read_limits(args), args.shorten)

    def __call__(self, shares: dict[str, np.ndarray]) -> dict[str, list[str]]:
        """Answers shares; returns rows of the answers file as JSON."""
        rows = []
        for questions, ready in zip(shares["questions"], shares["ready"], strict=True):
            images = map(unpack, pickle.loads(ready))  # our own bytes, from the stage before
            for batch in self.runner.run(read_share(questions), images):
                rows += [json.dumps(self.make_row(answer)) for answer in batch]
        return {"row": rows}


def answer_on(args: argparse.Namespace, preparer: Preparer, shares: Path, count: int) -> Iterator[list[Row]]:
    """Runs the cluster; yields rows of the answers file as they come."""
    import ray  # an extra
    from ray.data import ActorPoolStrategy, DataContext

    try:
        start_cluster(args)
        DataContext.get_current().enable_progress_bars = False  # ours shows more
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}  # other nodes may not have the file
        questions = ray.data.read_json(
            str(shares), lines=True, override_num_blocks=count, num_cpus=0, label_selector=here
        )
        images = questions.map(
            ImageStage,
            fn_constructor_args=(preparer, read_limits(args)),
            compute=ActorPoolStrategy(min_size=1, max_size=args.workers),
            num_cpus=1,
        )
        answers = images.map_batches(
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
        raise RuntimeError(f"the cluster failed: {describe_failure(error)}") from None
    finally:
        ray.shutdown()


def describe_failure(error: Exception) -> str:
    """Describes an error of Ray in one line: by the type and words of what a stage raised, or by its own.

    Args:
        error: Its text ends with the traceback of what was raised, and after that with one of Ray Data's own error.
    """
    blocks = [block.strip().splitlines() for block in re.split(CHAINED, str(error))]
    if len(blocks) > 1 and any("UserCodeException" in line for line in blocks[-1]):
        blocks.pop()
    lines = blocks[-1]
    start = 1 + max((i for i, line in enumerate(lines) if line[:1].isspace()), default=-1)
    words = " ".join(lines[start:] or lines[-1:])
    raised = hasattr(error, "cause") or getattr(error, "actor_init_failed", False)
    return words if raised else f"{type(error).__name__}: {words}"


def start_cluster(args: argparse.Namespace) -> None:
    """Joins the cluster, or starts one here, declared to have as many cores as the flags need."""
    import ray

    options: dict[str, Any] = {"logging_level": "warning", "log_to_driver": False}
    if args.address is not None:
        ray.init(args.address, **options)
        return
    cores = max(os.cpu_count() or 1, math.ceil(args.concurrency * args.cpus_per_actor) + args.workers)
    ray.init("local", num_cpus=cores, include_dashboard=False, **options)
    check_gpus(args.gpus_per_actor, ray.cluster_resources().get("GPU", 0))


def check_gpus(wanted: float, found: float) -> None:
    """Checks that a cluster has GPUs for one actor, for which Ray would wait forever.

    Raises:
        ValueError: it has fewer.
    """
    if wanted > found:
        raise ValueError(f"--gpus-per-actor is {wanted:g}, but Ray finds {found:g} GPUs here; give 0 to answer on CPUs")


def run(name: str, args: argparse.Namespace) -> int:
    """Answers the questions that the answers file lacks; returns the exit code.

    Raises:
        ValueError: contradictory flags, a bad question file, missing images, answers of another run, another run that
            writes the same file, or nodes whose settings differ.
    """
    limits = read_limits(args)
    args.workers = args.concurrency if args.workers is None else args.workers
    if args.workers < 1:
        raise ValueError(f"--workers is {args.workers}; it must be at least 1 on a cluster")
    if args.address is None:  # nodes of a cluster may have other devices
        check_model_flags(args)
    args.image_folder = args.image_folder.resolve()  # a node has another working directory
    for flag in ("model_path", "model_base"):
        if (path := getattr(args, flag)) is not None and Path(path).is_dir():
            setattr(args, flag, str(Path(path).resolve()))
    questions = read_inputs(args, lambda args: read_lines(args.question_file, args.image_folder, with_answers=False))
    preparer = make_preparer(args)
    with open_answers(args, questions) as answers, tempfile.TemporaryDirectory() as scratch:
        args.device = args.device or ("cuda" if args.gpus_per_actor else "cpu")
        todo = find_unanswered(args, questions, answers)
        shares = Path(scratch) / "shares.jsonl"
        count = write_shares(shares, todo, BATCHES_PER_TASK * limits.rows)
        batches = answer_on(args, preparer, shares, count) if todo else ()
        record(answers, batches, len(todo), resume=args.resume)
        return report(name, answers, args, questions)
