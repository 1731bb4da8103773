"""Runs a sweep: measures each cell, which is one choice of QLIP's settings or the CLIP tower.

A finished cell becomes a line of OUT/results.jsonl at once, so that a sweep that was killed continues when run again.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import torch
import transformers
from tqdm import tqdm

from llava.eval.run.answerer import Answerer, is_right
from llava.eval.run.answers.jsonl import append_row, replace
from llava.eval.run.answers.lock import only_run
from llava.eval.run.inputs.checks import (
    check_answered,
    check_images,
    check_question_file,
    name_embedded,
    shorten_name,
)
from llava.eval.run.inputs.questions import Question, read_lines
from llava.eval.sweep.grid import (
    Cell,
    Task,
    hash_prior,
    is_current,
    make_cells,
    make_task,
    read_axes,
    read_results,
    to_settings,
)
from llava.eval.sweep.plots import Record, describe, format_percent, table, write_figures
from llava.images import ImageError, load_image
from llava.model.vision.prepared_image import PreparedImage
from llava.model.vision.preparer import Source
from llava.serve.engine import ChatEngine
from llava.serve.engine.errors import PromptTooLongError, ran_out_of_memory
from llava.serve.loading import QLIP_FLAGS, check_model_flags, load_engine
from qlip.tools.intervals import mean_interval

IMAGES_AT_ONCE = 32

Asked = list[tuple[Source, list[Question]]]
"""Images, each with its questions."""


def run(args: argparse.Namespace) -> int:
    """Measures the cells that the results lack, then prints a table and draws figures of all results.

    Every image must exist and have a readable header before the model is loaded; one that cannot be decoded shows in
    the first cell. A cell whose prompts exceed the model's context, or the GPU's memory, is skipped with a message.

    Raises:
        ValueError: contradictory flags, a bad question file, missing or broken images, a results.jsonl of another
            program, or another sweep that is writing it.
    """
    check_model_flags(args)
    check_question_file(args.question_file)
    questions = read_lines(args.question_file, args.image_folder, args.answers_file)[: args.limit]
    task, asked = make_task(args, questions), group_by_image(questions, args)
    axes = read_axes(args)
    cells = make_cells(args, axes)
    results = Path(os.path.realpath(args.out / "results.jsonl"))
    with only_run(results):
        return _measure(args, task, asked, cells, list(axes), results)


def _measure(
    args: argparse.Namespace, task: Task, asked: Asked, cells: Sequence[Cell], axes: Sequence[str], results: Path
) -> int:
    """Measures the cells that the results lack; see `run`."""
    known, rows = read_results(results)
    if not rows.whole:
        replace(results, rows.content)
    records = [record for record in known if record["task"] == asdict(task) and is_current(record)]
    done = [record["settings"] for record in records]
    todo = [cell for cell in cells if to_settings(cell) not in done]
    print(f"qlip sweep: {len(cells)} cells, {len(cells) - len(todo)} of them already done", file=sys.stderr)
    seconds, skipped = 0.0, 0
    for number, (cell, outcome) in enumerate(measure_all(args, asked, todo), start=1):
        line = f"qlip sweep: {number} of {len(todo)}: {describe(to_settings(cell), axes)}"
        if isinstance(outcome, str):
            skipped += 1
            print(f"{line}: skipped: {outcome}", file=sys.stderr)
            continue
        settings = to_settings(cell)
        record = {"task": asdict(task), "clip": cell is None, "settings": settings, "prior": hash_prior(settings)}
        record |= outcome
        append_row(results, record)
        records.append(record)
        seconds += outcome["seconds"]
        left = timedelta(seconds=round(seconds / (number - skipped) * (len(todo) - number)))
        accuracy = format_percent(outcome["accuracy"]["mean"])
        summary = f"{accuracy} %, {outcome['tokens']:.1f} tokens, {outcome['seconds']:.0f} s"
        print(f"{line}: {summary}; about {left} left", file=sys.stderr)
    if records:
        print(table(records))
        for file in write_figures(records, args.out):
            print(f"qlip sweep: {file}", file=sys.stderr)
    return 1 if skipped else 0


def group_by_image(questions: Sequence[Question], args: argparse.Namespace) -> Asked:
    """Groups questions by image, in the order of the images' first questions.

    Raises:
        ValueError: a question has no right answer, or images are missing or unreadable.
    """
    check_answered(args.question_file, questions, "give --answers-file")
    images: dict[Source, list[Question]] = {}
    for question in questions:
        if question.image is not None:  # each has one
            images.setdefault(question.image, []).append(question)
    check_images(images, args.image_folder, names=name_embedded(args.question_file, questions))
    return list(images.items())


def measure_all(args: argparse.Namespace, asked: Asked, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Record | str]]:
    """Yields each cell with its measurement, or with the reason why there is none.

    CLIP's comes first: only one model is in memory at a time.
    """
    chat_flags = dict.fromkeys(QLIP_FLAGS)
    for clip in (True, False):
        part = [cell for cell in cells if (cell is None) == clip]
        if not part:
            continue
        engine = load_engine(argparse.Namespace(**{**vars(args), **chat_flags, "qlip": not clip}))
        answerer = Answerer(engine, args.max_new_tokens, args.batch_tokens)
        for cell in part:
            if cell is not None:
                engine.model.get_vision_tower().settings = cell
            outcome: Record | str
            try:
                outcome = measure(answerer, asked)
            except Exception as error:
                if not (isinstance(error, PromptTooLongError) or ran_out_of_memory(error)):
                    raise
                outcome = " ".join(str(error).split())  # the exception itself would keep the cell's tensors alive
            yield cell, outcome
        del engine, answerer
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def measure(answerer: Answerer, asked: Asked) -> Record:
    """Measures one cell: accuracy with 95 % intervals by the bootstrap over images, and visual tokens.

    Only a few images are in memory at a time; each is encoded once for all its questions.

    Raises:
        ValueError: an image cannot be read.
    """
    start = time.perf_counter()
    engine = answerer.engine
    right: list[bool] = []
    tokens: list[int] = []
    uniform: list[int] = []
    for first in tqdm(range(0, len(asked), IMAGES_AT_ONCE), unit="chunk", leave=False, disable=None, delay=2):
        some = asked[first : first + IMAGES_AT_ONCE]
        encoded = []
        for path, _ in some:
            image = prepare(engine, path)
            with torch.inference_mode():
                encoded += engine.vision.encode([image])
            uniform.append(image.uniform_tokens)
        tokens += [len(image.features) for image in encoded]
        pairs = [(index, question.text) for index, (_, questions) in enumerate(some) for question in questions]
        asked_now = [question for _, questions in some for question in questions]
        said = answerer.answer(encoded, pairs)
        right += [is_right(q.text, text, str(q.answer)) for q, text in zip(asked_now, said, strict=True)]
    return {
        **scores(right, [(path, question.category) for path, questions in asked for question in questions]),
        "questions": len(right),
        "pictures": len(asked),
        "tokens": sum(tokens) / len(tokens),
        "uniform_tokens": sum(uniform) / len(uniform),
        "seconds": round(time.perf_counter() - start, 3),
        "device": str(engine.model.device),
        "dtype": str(engine.model.dtype).removeprefix("torch."),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def prepare(engine: ChatEngine, source: Source) -> PreparedImage:
    """Reads an image as the tower takes it."""
    try:
        return engine.vision.prepare(load_image(source), engine.vision.settings())
    except ImageError as error:
        raise ValueError(f"{shorten_name(source)}: {error}") from None


def scores(right: Sequence[bool], origin: Sequence[tuple[Source, str]]) -> Record:
    """Computes `accuracy` and, by category, `categories`, each with an estimate's fields.

    Args:
        right: whether each answer is right.
        origin: its image and its category.
    """

    def estimate(chosen: Sequence[int]) -> dict[str, float]:
        return asdict(mean_interval([right[i] for i in chosen], [origin[i][0] for i in chosen]))

    names = dict.fromkeys(category for _, category in origin)
    every = range(len(right))
    return {
        "accuracy": estimate(every),
        "categories": {name: estimate([i for i in every if origin[i][1] == name]) for name in names},
    }
