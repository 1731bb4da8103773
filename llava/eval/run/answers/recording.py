"""Writes a run's answers into its file as they come: what every command does around its way of answering."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from itertools import chain
from typing import Any

from llava.eval.run.answers.answer_file import PER_ROW, AnswerFile, check_settings
from llava.eval.run.answers.jsonl import Row
from llava.eval.run.answers.lock import only_run
from llava.eval.run.answers.progress import Progress
from llava.eval.run.inputs.checks import check_asked_images
from llava.eval.run.inputs.questions import Question, chunk, select_indices
from llava.eval.run.processes import Processes


@contextmanager
def open_answers(
    args: argparse.Namespace, questions: Sequence[Question], processes: Processes | None = None
) -> Iterator[AnswerFile]:
    """Checks the run's images and its answers file, and keeps other runs away from the file; writes nothing yet.

    Raises:
        ValueError: images are missing, the file is not this runner's or answers other questions, or another run is
            writing it.
    """
    processes = processes or Processes()
    answers = AnswerFile(args.answers_file, processes.part)
    answers.check_place(args.question_file)
    if processes.is_first:
        check_asked_images(args, questions)
    with only_run(answers.path) if processes.is_first else nullcontext():
        if processes.is_first:
            answers.check_rows(questions, args.resume)
        processes.wait()
        yield answers


def find_unanswered(args: argparse.Namespace, questions: Sequence[Question], answers: AnswerFile) -> list[Question]:
    """Finds the questions of this run that have no answer yet; with `--no-resume`, all of this run."""
    done = answers.done() if args.resume else set()
    return [questions[i] for i in select_indices(args, questions) if i not in done]


def record(
    answers: AnswerFile,
    batches: Iterable[Sequence[Row]],
    total: int,
    *,
    resume: bool,
    settings: Mapping[str, Any] | None = None,
    processes: Processes | None = None,
) -> None:
    """Appends rows to the answers file, batch after batch.

    Nothing is written before the settings are known to be those of the answers so far.

    Args:
        answers: the file.
        batches: rows of answers and errors.
        total: number of questions.
        resume: False starts the file over.
        settings: of the run; None takes them from the first answer, and checks that all later ones have the same.
        processes: those that write the file together.

    Raises:
        ValueError: the answers so far, or two of the new ones, were made with different settings.
    """
    processes = processes or Processes()
    with closing(Progress(total, show=processes.is_first and total > 0)) as progress:
        counted = _count(batches, progress)
        if settings is None:
            settings, counted = _find_settings(counted)
        if settings is None:  # nothing but errors
            answers.start(resume)
        else:
            _start(answers, settings, resume, processes)
        for rows in counted:
            answers.append(rows)


def _count(batches: Iterable[Sequence[Row]], progress: Progress) -> Iterator[Sequence[Row]]:
    """Passes rows on, and shows how many have come."""
    for rows in batches:
        progress.add(rows)
        yield rows


def _find_settings(batches: Iterable[Sequence[Row]]) -> tuple[Mapping[str, Any] | None, Iterator[Sequence[Row]]]:
    """Reads the settings from the first answer; None if there is none, since errors do not show them.

    Returns:
        The settings, and all batches, which raise ValueError at an answer with other settings.
    """
    held, later = list[Row](), iter(batches)
    for rows in later:
        held += rows
        if (first := next((row for row in rows if "text" in row), None)) is not None:
            settings = {name: value for name, value in first["metadata"].items() if name not in PER_ROW}
            _check_rows(held, settings)  # before anything is written
            return settings, chain([held], _check_batches(later, settings))
    return None, iter([held])


def _check_batches(batches: Iterable[Sequence[Row]], settings: Mapping[str, Any]) -> Iterator[Sequence[Row]]:
    """Passes rows on once they are checked."""
    for rows in batches:
        _check_rows(rows, settings)
        yield rows


def _check_rows(rows: Iterable[Row], settings: Mapping[str, Any]) -> None:
    """Raises ValueError if an answer among rows was made with other settings."""
    for row in rows:
        if "text" in row:
            check_settings("an answer from another node", row, settings)


def _start(answers: AnswerFile, settings: Mapping[str, Any], resume: bool, processes: Processes) -> None:
    if resume:
        answers.check_same_settings(settings)
    processes.wait()
    if processes.is_first:
        answers.start(resume)
    processes.wait()


def report(name: str, answers: AnswerFile, args: argparse.Namespace, questions: Sequence[Question]) -> int:
    """Sorts the answers file and prints what it holds; returns the exit code, 0 if every question has an answer."""
    answered, failed = answers.finish()
    asked, of_chunk = select_indices(args, questions), chunk(questions, args.num_chunks, args.chunk_idx)
    lost = len(answers.lost(asked))
    print(f"{name}: {answered} answers in {answers.path}", file=sys.stderr)
    if len(asked) < len(of_chunk):
        words = f"only the first {len(asked)} of {len(of_chunk)} questions were asked (--limit)"
        print(f"{name}: {words}; without it the same command answers the others", file=sys.stderr)
    if failed:
        print(f"{name}: {failed} questions have no answer; {answers.errors} says why", file=sys.stderr)
    if lost:
        print(f"{name}: {lost} questions have neither answer nor error; run the same command again", file=sys.stderr)
    return 1 if failed or lost else 0
