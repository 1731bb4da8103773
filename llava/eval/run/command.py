"""What the commands that answer question files share: flags, the loop, the file of answers, progress, exit codes.

A command brings its questions. Under `accelerate launch` or torchrun each process answers a share of them.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from llava.command import OneLineParser, integer, real, run_command
from llava.eval.run.answer_file import AnswerFile
from llava.eval.run.batching import BatchLimits
from llava.eval.run.inputs import add_input_flags, check_asked_images, check_chunk, check_question_file, wanted
from llava.eval.run.jsonl import Row
from llava.eval.run.lock import only_run
from llava.eval.run.metadata import checkpoint_hash, run_settings
from llava.eval.run.pictures import Preparer, prepare_ahead
from llava.eval.run.progress import Progress
from llava.eval.run.questions import Question, chunk
from llava.eval.run.runner import WINDOW, Asked, Outcome, Runner, pictures_of
from llava.mm_utils import get_model_name_from_path
from llava.model.builder import load_empty_tower
from llava.serve.engine.params import Sampling
from llava.serve.loading import add_model_flags, check_model_flags, load_engine, qlip_option
from llava.utils import demo_model_path

FEW_PICTURES = 64
"""Up to here worker processes would take longer to start than to help."""

STOPPED = "stopped; the same command continues"
"""Said after Ctrl-C."""

ReadQuestions = Callable[[argparse.Namespace], list[Question]]


@dataclass(frozen=True)
class Defaults:
    """Where the commands differ."""

    question_file: str = "tables/question.jsonl"
    temperature: float = 0.2
    max_new_tokens: int = 1024


def make_parser(name: str, description: str, defaults: Defaults) -> OneLineParser:
    """The flags that all commands share: LLaVA's, and those of batches, workers and the quadtree."""
    parser = OneLineParser(prog=name, description=description)
    add_model_flags(parser)
    parser.add_argument("--image-folder", type=Path, default=Path(), help="where the pictures lie (default: here)")
    parser.add_argument(
        "--question-file", type=Path, default=Path(defaults.question_file), help="the questions (%(default)s)"
    )
    parser.add_argument("--answers-file", type=Path, default=Path("answer.jsonl"), help="the answers (%(default)s)")
    add_input_flags(parser)
    parser.add_argument(
        "--temperature", type=real(), default=defaults.temperature, help="0 takes the likeliest token (%(default)s)"
    )
    parser.add_argument("--top_p", "--top-p", type=real(0, 1, above=True), help="share of the probability sampled from")
    parser.add_argument("--num_beams", "--num-beams", type=integer(), default=1, help="width of the beam search")
    parser.add_argument(
        "--max_new_tokens",
        "--max-new-tokens",
        type=integer(),
        default=defaults.max_new_tokens,
        help="longest answer (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of sampled answers (%(default)s)")
    parser.add_argument(
        "--batch-size", type=integer(), default=BatchLimits.rows, help="most questions at once (%(default)s)"
    )
    parser.add_argument(
        "--batch-tokens",
        type=integer(),
        default=BatchLimits.tokens,
        help="most tokens of a batch's prompts, padding included (%(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=integer(0),
        help=f"processes that make pictures ready (default: by the cores; 0 up to {FEW_PICTURES} pictures)",
    )
    parser.add_argument(
        "--resume", action=argparse.BooleanOptionalAction, default=True, help="go on where a stopped run ended"
    )
    return parser


def command(
    name: str, parser: OneLineParser, read: ReadQuestions, argv: Sequence[str] | None, needs_tower: bool = True
) -> int:
    """Runs a command line; returns 0, 1 if questions stayed without an answer, 2 for an error, 130 if interrupted.

    `needs_tower` is false where questions have no pictures, so that a language model alone may answer them.
    """
    args = parser.parse_args(argv)
    return run_command(name, lambda: run(name, args, read, needs_tower), interrupted=STOPPED)


def run(name: str, args: argparse.Namespace, read: ReadQuestions, needs_tower: bool = True) -> int:
    """Answers what the file of answers lacks.

    Raises:
        ValueError: impossible flags, a bad question file, images that are not there, answers of another run, or another
            run at work on them.
    """
    check_model_flags(args, needs_tower=needs_tower)
    questions = read_inputs(args, read)
    preparer = make_preparer(args) if any(question.image is not None for question in questions) else None
    state = join_processes(args)
    first = state is None or state.is_main_process
    answers = AnswerFile(args.answers_file, state.process_index if state else None)
    answers.check_place(args.question_file)
    if first:
        check_asked_images(args, questions)
    with only_run(answers.path) if first else nullcontext():
        return _answer(name, args, questions, answers, preparer, state)


def read_inputs(args: argparse.Namespace, read: ReadQuestions) -> list[Question]:
    """The questions that the flags name.

    Raises:
        ValueError: no such file, a bad one, or no chunk of that number.
    """
    check_chunk(args)
    check_question_file(args.question_file)
    return read(args)


def _answer(
    name: str,
    args: argparse.Namespace,
    questions: Sequence[Question],
    answers: AnswerFile,
    preparer: Preparer | None,
    state: PartialState | None,
) -> int:
    """Answers this process's share of what the file of answers lacks; the first process starts and ends the file.

    Nothing is written before the model is loaded and its settings are known to be those of the answers so far.
    """
    sampling, limits = read_sampling(args), read_limits(args)
    first = state is None or state.is_main_process
    if first:
        answers.check_rows(questions, args.resume)
    if state:
        state.wait_for_everyone()
    todo = open_questions(args, questions, answers)
    if state:
        todo = [todo[i] for i in chunk(todo, state.num_processes, state.process_index)]
    pictures = pictures_of(todo, limits)
    workers = choose_workers(args.workers, len(pictures), state.num_processes if state else 1)
    ready: Iterator[Any] = iter(())
    if preparer is not None:
        ready = prepare_ahead(preparer, pictures, workers, ahead=WINDOW * limits.rows)  # while the model loads
    engine = load_engine(args, needs_tower=preparer is not None)
    settings = run_settings(engine, sampling, args.seed, args, checkpoint_hash(args.model_path, args.model_base))
    if args.resume:
        answers.check(settings)
    if state:
        state.wait_for_everyone()
    if first:
        answers.start(args.resume)
    if state:
        state.wait_for_everyone()
    progress, make_row = Progress(len(todo), show=first), row_maker(args.model_path, settings)
    for outcomes in Runner(engine, sampling, args.seed, limits).run(todo, ready):
        rows = [make_row(outcome) for outcome in outcomes]
        answers.append(rows)
        progress.add(rows)
    progress.close()
    if state:
        state.wait_for_everyone()
        state.destroy_process_group()
    return report(name, answers, args, questions) if first else 0


def open_questions(args: argparse.Namespace, questions: Sequence[Question], answers: AnswerFile) -> list[Asked]:
    """The questions of this run that have no answer yet, or that are asked again."""
    done = answers.done() if args.resume else set()
    return [(i, questions[i]) for i in wanted(args, questions) if i not in done]


def make_preparer(args: argparse.Namespace) -> Preparer:
    """Makes pictures ready for the model that the flags of `add_model_flags` name, which need not be loaded."""
    model = args.model_path or demo_model_path()
    return Preparer.of(load_empty_tower(model, args.model_base, qlip=qlip_option(args)))


def join_processes(args: argparse.Namespace) -> PartialState | None:
    """This process among those that a launcher started, on a GPU of its own if there are any; None if it is alone.

    They only wait for each other, over the CPU: a GPU's own way would keep it busy meanwhile.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return None
    state = PartialState(cpu=True, timeout=timedelta(days=30))
    if args.device is None and torch.cuda.is_available():
        args.device = f"cuda:{state.local_process_index % torch.cuda.device_count()}"
    return state


def report(name: str, answers: AnswerFile, args: argparse.Namespace, questions: Sequence[Question]) -> int:
    """Puts the file of answers in order; returns the exit code: 0 if all the wanted questions have an answer."""
    answered, failed = answers.finish()
    asked, of_chunk = wanted(args, questions), chunk(questions, args.num_chunks, args.chunk_idx)
    lost = len(answers.lost(asked))
    print(f"{name}: {answered} answers in {answers.path}", file=sys.stderr)
    if len(asked) < len(of_chunk):
        words = f"only the first {len(asked)} of {len(of_chunk)} questions were asked (--limit)"
        print(f"{name}: {words}; without it the same command answers the others", file=sys.stderr)
    if failed:
        print(f"{name}: {failed} questions have no answer; {answers.errors} says why", file=sys.stderr)
    if lost:
        print(f"{name}: {lost} questions have neither answer nor error; the same command goes on", file=sys.stderr)
    return 1 if failed or lost else 0


def row_maker(model_path: str | None, settings: Mapping[str, Any]) -> Callable[[Outcome], Row]:
    """Turns outcomes into rows: of the answers where there is a text, else of the errors."""
    model_id = get_model_name_from_path(str(model_path or demo_model_path()))
    run_name = sha256(repr(sorted(settings.items())).encode()).hexdigest()

    def make_row(outcome: Outcome) -> Row:
        question, picture = outcome.question, outcome.picture
        row: Row = {"question_id": question.question_id, "prompt": question.prompt}
        if outcome.text is None:
            place = {"index": outcome.index, "image": question.image_name}
            return {**row, **question.extra, "error": outcome.error, "metadata": place}
        metadata = {
            "index": outcome.index,
            "image": question.image_name,
            "image_size": list(picture.size) if picture else None,
            "visual_tokens": picture.tokens if picture else 0,
            "uniform_tokens": picture.uniform_tokens if picture else 0,
            **settings,
        }
        answer_id = sha256(f"{run_name}:{outcome.index}".encode()).hexdigest()[:22]
        return {
            **row,
            "text": outcome.text,
            **question.extra,
            "answer_id": answer_id,
            "model_id": model_id,
            "metadata": metadata,
        }

    return make_row


def read_sampling(args: argparse.Namespace) -> Sampling:
    """How the flags want answers decoded."""
    return Sampling(args.temperature, args.top_p, args.num_beams, args.max_new_tokens)


def read_limits(args: argparse.Namespace) -> BatchLimits:
    """How large the flags let batches be; every beam is a row of its own."""
    rows, tokens = max(1, args.batch_size // args.num_beams), max(1, args.batch_tokens // args.num_beams)
    return BatchLimits(rows, tokens)


def choose_workers(wanted: int | None, pictures: int, processes: int) -> int:
    """How many processes make pictures ready."""
    if wanted is not None:
        return wanted
    if pictures <= FEW_PICTURES:
        return 0
    return max(1, min(8, (os.cpu_count() or 1) // processes - 1))
