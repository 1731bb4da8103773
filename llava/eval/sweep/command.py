"""Accuracy over QLIP's settings, from a question file: `qlip sweep`, or `python -m llava.eval.sweep`.

A cell is one choice of settings, or the CLIP tower. It becomes a line of OUT/results.jsonl as soon as it is done, so
that a sweep which was stopped, however hard, goes on when called again. How answers come about is
`llava.eval.run.answerer`'s matter.
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
from typing import Any

import torch
import transformers
from torch import Tensor
from tqdm import tqdm

from llava.command import OneLineParser, integer, run_command
from llava.eval.run.answerer import Answerer, VisualQuestion, read_questions, same_answer
from llava.eval.run.inputs import check_images, check_question_file
from llava.eval.run.jsonl import append_row, replace
from llava.eval.run.lock import only_run
from llava.eval.sweep.cells import Cell, Task, as_settings, make_cells, make_task, read_axes, read_results
from llava.eval.sweep.plots import Record, describe, percent, table, write_figures
from llava.images import ImageError, load_image
from llava.serve.engine import ChatEngine
from llava.serve.engine.errors import PromptTooLong
from llava.serve.loading import add_model_flags, check_model_flags, load_engine
from qlip.tools.intervals import mean_interval

DESCRIPTION = """Measure a model's accuracy on a question file over QLIP's settings, with the CLIP tower beside them.
Settings that no flag names are the checkpoint's own. A stopped sweep goes on when called again."""

PICTURES_AT_ONCE = 32

Asked = list[tuple[Path, list[VisualQuestion]]]
"""Pictures, each with its questions."""


def add_command(commands: Any) -> None:
    """Adds `sweep` to the commands of `qlip`, which finds this function by its entry point."""
    parser = commands.add_parser(
        "sweep",
        help="accuracy over settings, from a question file",
        description=DESCRIPTION,
        conflict_handler="resolve",
    )
    add_flags(parser)
    parser.set_defaults(run=command)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags, on a parser that lets the lists here replace the single values of a chat's model flags."""
    add_model_flags(parser)
    parser.add_argument("--question-file", type=Path, required=True, help="questions, LLaVA's JSON lines")
    parser.add_argument("--answers-file", type=Path, help="right answers, where the question file has none")
    parser.add_argument("--image-folder", type=Path, required=True, help="where the pictures lie")
    parser.add_argument("--out", type=Path, required=True, help="folder of results.jsonl and the figures")
    parser.add_argument("--alpha", nargs="+", metavar="A", help="split thresholds")
    parser.add_argument("--max-tokens", nargs="+", metavar="N", help="budgets; none is no bound")
    parser.add_argument("--image-size", nargs="+", metavar="PX", help="shorter sides in pixels; none is the picture's")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="NAME=V1,V2", help="values of any other QLIP setting"
    )
    parser.add_argument("--qlip", action=argparse.BooleanOptionalAction, default=True, help="measure QLIP's cells")
    parser.add_argument("--clip", action=argparse.BooleanOptionalAction, default=True, help="measure the CLIP tower")
    parser.add_argument("--limit", type=integer(), metavar="N", help="only the first N questions")
    parser.add_argument("--max-new-tokens", type=integer(), default=64, help="longest answer, in tokens (%(default)s)")
    parser.add_argument("--batch-tokens", type=integer(), default=16384, help="most tokens of a batch (%(default)s)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = OneLineParser(prog="sweep", description=DESCRIPTION, conflict_handler="resolve")
    add_flags(parser)
    return command(parser.parse_args(arguments))


def command(options: argparse.Namespace) -> int:
    """Runs a sweep; returns the exit code: 0, 1 if cells were skipped, 2 for an error, 130 if it was interrupted."""
    return run_command(
        "sweep", lambda: run(options), interrupted="stopped; the same command continues with the next cell"
    )


def run(options: argparse.Namespace) -> int:
    """Measures the cells that the results lack, then prints a table and draws figures of all that are there.

    Every picture must be there, with a readable header, before the model is loaded; one that cannot be decoded shows
    in the first cell. A cell whose prompts exceed the model's context, or the GPU's memory, is skipped with a message.

    Raises:
        ValueError: impossible flags, a bad question file, missing or broken pictures, a results.jsonl of another
            kind, or another sweep at work in the folder.
    """
    check_model_flags(options)
    check_question_file(options.question_file)
    task = make_task(options)
    asked = by_picture(read_questions(options.question_file, options.answers_file)[: task.limit], options)
    axes = read_axes(options)
    cells = make_cells(options, axes)
    results = Path(os.path.realpath(options.out / "results.jsonl"))
    with only_run(results):
        return _measure(options, task, asked, cells, list(axes), results)


def _measure(
    options: argparse.Namespace, task: Task, asked: Asked, cells: Sequence[Cell], axes: Sequence[str], results: Path
) -> int:
    """Measures the cells that the results lack; see `run`."""
    known, rows = read_results(results)
    if not rows.whole:
        replace(results, rows.content)
    records = [record for record in known if record["task"] == asdict(task)]
    done = [record["settings"] for record in records]
    todo = [cell for cell in cells if as_settings(cell) not in done]
    print(f"sweep: {len(cells)} cells, {len(cells) - len(todo)} of them done before", file=sys.stderr)
    seconds, skipped = 0.0, 0
    for number, (cell, outcome) in enumerate(measure_all(options, asked, todo), start=1):
        line = f"sweep: {number} of {len(todo)}: {describe(as_settings(cell), axes)}"
        if isinstance(outcome, str):
            skipped += 1
            print(f"{line}: skipped: {outcome}", file=sys.stderr)
            continue
        record = {"task": asdict(task), "clip": cell is None, "settings": as_settings(cell), **outcome}
        append_row(results, record)
        records.append(record)
        seconds += outcome["seconds"]
        left = timedelta(seconds=round(seconds / (number - skipped) * (len(todo) - number)))
        told = f"{percent(outcome['accuracy']['mean'])} %, {outcome['tokens']:.1f} tokens, {outcome['seconds']:.0f} s"
        print(f"{line}: {told}; about {left} left", file=sys.stderr)
    if records:
        print(table(records))
        for file in write_figures(records, options.out):
            print(f"sweep: {file}", file=sys.stderr)
    return 1 if skipped else 0


def by_picture(questions: Sequence[VisualQuestion], options: argparse.Namespace) -> Asked:
    """Pictures in the order of their first questions.

    Raises:
        ValueError: a question has no right answer, or pictures are missing or unreadable.
    """
    if unknown := [question.question_id for question in questions if question.answer is None]:
        raise ValueError(f"question {unknown[0]!r} has no right answer; give --answers-file")
    pictures: dict[Path, list[VisualQuestion]] = {}
    for question in questions:
        pictures.setdefault(options.image_folder / question.image, []).append(question)
    check_images(pictures, options.image_folder)
    return list(pictures.items())


def measure_all(
    options: argparse.Namespace, asked: Asked, cells: Sequence[Cell]
) -> Iterator[tuple[Cell, Record | str]]:
    """Measures cells, or says why one cannot be; with CLIP's first, since one model is in memory at a time."""
    chat_flags = {"alpha": None, "max_tokens": None, "image_size": None}
    for clip in (True, False):
        part = [cell for cell in cells if (cell is None) == clip]
        if not part:
            continue
        engine = load_engine(argparse.Namespace(**{**vars(options), **chat_flags, "qlip": not clip}))
        answerer = Answerer(engine, options.max_new_tokens, options.batch_tokens)
        for cell in part:
            if cell is not None:
                engine.model.get_vision_tower().settings = cell
            outcome: Record | str
            try:
                outcome = measure(answerer, asked)
            except (PromptTooLong, torch.OutOfMemoryError) as error:
                outcome = " ".join(str(error).split())  # the exception itself would keep the cell's tensors alive
            yield cell, outcome
        del engine, answerer
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def measure(answerer: Answerer, asked: Asked) -> Record:
    """One cell: accuracy with 95 % intervals by the bootstrap over pictures, and visual tokens.

    Pictures are decoded, encoded and let go a few at a time; each is encoded once for all its questions.

    Raises:
        ValueError: a picture cannot be read; its name is told.
    """
    start = time.perf_counter()
    engine = answerer.engine
    right: list[bool] = []
    tokens: list[int] = []
    uniform: list[int] = []
    cell_area = engine.model.get_vision_tower().config.patch_size ** 2
    for first in tqdm(range(0, len(asked), PICTURES_AT_ONCE), unit="chunk", leave=False, disable=None):
        some = asked[first : first + PICTURES_AT_ONCE]
        pictures = []
        for path, _ in some:
            pixels = prepare(engine, path)
            with torch.inference_mode():
                pictures += engine.model.encode_tokens([pixels])
            uniform.append(pixels.shape[-2] * pixels.shape[-1] // cell_area)
        tokens += [len(picture.features) for picture in pictures]
        pairs = [(index, question.text) for index, (_, questions) in enumerate(some) for question in questions]
        answers = [str(question.answer) for _, questions in some for question in questions]
        right += [same_answer(*pair) for pair in zip(answerer.answer(pictures, pairs), answers, strict=True)]
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


def prepare(engine: ChatEngine, path: Path) -> Tensor:
    """The pixels of a picture as the tower takes them, (3, H, W)."""
    try:
        return engine.prepare_images([load_image(path)])[0]
    except ImageError as error:
        raise ValueError(f"{path}: {error}") from None


def scores(right: Sequence[bool], origin: Sequence[tuple[Path, str]]) -> Record:
    """`accuracy` and, by category, `categories`, each an estimate's fields.

    Args:
        right: whether an answer is right.
        origin: the picture and the category that it belongs to.
    """

    def estimate(chosen: Sequence[int]) -> dict[str, float]:
        return asdict(mean_interval([right[i] for i in chosen], [origin[i][0] for i in chosen]))

    names = dict.fromkeys(category for _, category in origin)
    every = range(len(right))
    return {
        "accuracy": estimate(every),
        "categories": {name: estimate([i for i in every if origin[i][1] == name]) for name in names},
    }


if __name__ == "__main__":
    sys.exit(main())
