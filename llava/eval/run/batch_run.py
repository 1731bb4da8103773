"""Answers a question file on this machine, in one process or a share in each of several."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from typing import Any

from llava.eval.run.answers.answer import row_maker
from llava.eval.run.answers.metadata import checkpoint_hash, run_settings
from llava.eval.run.answers.recording import find_unanswered, open_answers, record, report
from llava.eval.run.flags import ReadQuestions, read_limits, read_sampling
from llava.eval.run.inputs.checks import read_inputs
from llava.eval.run.inputs.preparation import prepare_ahead
from llava.eval.run.processes import Processes
from llava.eval.run.runner import Runner
from llava.eval.run.windows import WINDOW, list_sources
from llava.model.builder import load_empty_tower
from llava.model.vision.preparer import Preparer
from llava.serve.loading import check_model_flags, load_engine, qlip_option
from llava.utils import default_device, demo_model_path


def run(name: str, args: argparse.Namespace, read: ReadQuestions, needs_tower: bool = True) -> int:
    """Answers the questions that the answers file lacks; returns the exit code.

    Raises:
        ValueError: contradictory flags, a bad question file, missing images, answers of another run, or another run
            that writes the same file.
    """
    check_model_flags(args, needs_tower=needs_tower)
    questions = read_inputs(args, read)
    preparer = make_preparer(args) if any(question.image is not None for question in questions) else None
    processes = Processes.join(args)
    with open_answers(args, questions, processes) as answers:
        sampling, limits = read_sampling(args), read_limits(args)
        todo = processes.share(find_unanswered(args, questions, answers))
        sources = list_sources(todo, limits)
        workers = choose_workers(args.workers, processes.count, args.device or default_device())
        ready: Iterator[Any] = iter(())
        if preparer is not None:
            ready = prepare_ahead(preparer, sources, workers, ahead=WINDOW * limits.rows)  # while the model loads
        engine = load_engine(args, needs_tower=preparer is not None)
        settings = run_settings(engine, sampling, args.seed, args, checkpoint_hash(args.model_path, args.model_base))
        make_row = row_maker(args.model_path, settings)
        runner = Runner(engine, sampling, args.seed, limits, args.shorten)
        batches = ([make_row(answer) for answer in batch] for batch in runner.run(todo, ready))
        record(answers, batches, len(todo), resume=args.resume, settings=settings, processes=processes)
        processes.leave()
        return report(name, answers, args, questions) if processes.is_first else 0


def make_preparer(args: argparse.Namespace) -> Preparer:
    """Builds the image preparation of the model that the flags of `add_model_flags` name, without loading weights."""
    model = args.model_path or demo_model_path()
    return Preparer.of(load_empty_tower(model, args.model_base, qlip=qlip_option(args)))


def choose_workers(wanted: int | None, processes: int, device: str) -> int:
    """Chooses the most processes that prepare images; `wanted` is the user's flag.

    Models that compute on all cores leave none for preparing images: a thread beside each would only take turns.
    """
    if wanted is not None:
        return wanted
    spare = (os.cpu_count() or 1) // processes - 1
    return max(0 if device.startswith("cpu") and processes > 1 else 1, min(8, spare))
