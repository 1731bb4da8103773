"""Flags of the commands that answer question files, and what is read from them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llava.command import OneLineParser, add_length_flag, integer, real
from llava.eval.run.batching import BatchLimits
from llava.eval.run.inputs.questions import Question
from llava.serve.engine.params import Sampling
from llava.serve.loading import add_model_flags

ReadQuestions = Callable[[argparse.Namespace], list[Question]]


@dataclass(frozen=True)
class Defaults:
    """The defaults in which the commands differ."""

    question_file: str = "tables/question.jsonl"
    temperature: float = 0.2
    max_new_tokens: int = 1024


def make_parser(name: str, description: str, defaults: Defaults) -> OneLineParser:
    """Builds the parser that all commands share: LLaVA's flags, and those of batches, workers and the quadtree."""
    # The benchmark scripts read flags by their whole names.
    parser = OneLineParser(prog=name, description=description, allow_abbrev=False)
    add_model_flags(parser)
    parser.add_argument("--image-folder", type=Path, default=Path(), help="folder of the images (default: here)")
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
    add_length_flag(parser, "--max_new_tokens", "--max-new-tokens", default=defaults.max_new_tokens)
    parser.add_argument("--seed", type=int, default=0, help="seed of sampled answers (%(default)s)")
    parser.add_argument(
        "--batch-size", type=integer(), default=BatchLimits.rows, help="most questions in a batch (%(default)s)"
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
        help="most processes that prepare images; they start where they pay (default: by the cores)",
    )
    add_resume_flag(parser)
    return parser


def add_input_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that choose a part of the question file."""
    parser.add_argument("--num-chunks", type=integer(), default=1, help="cut the questions into N chunks", metavar="N")
    parser.add_argument("--chunk-idx", type=integer(0), default=0, metavar="I", help="and answer this one, from 0")
    parser.add_argument("--limit", type=integer(), metavar="N", help="answer only the first N questions of the chunk")
    parser.add_argument(
        "--skip-unreadable",
        action="store_true",
        help="answer the other questions where images are missing or unreadable (default: answer none)",
    )


def add_resume_flag(parser: argparse.ArgumentParser) -> None:
    """Adds `--resume` and `--no-resume`."""
    parser.add_argument(
        "--resume", action=argparse.BooleanOptionalAction, default=True, help="continue where a stopped run ended"
    )


def read_sampling(args: argparse.Namespace) -> Sampling:
    """Reads how answers are decoded from the flags."""
    return Sampling(args.temperature, args.top_p, args.num_beams, args.max_new_tokens)


def read_limits(args: argparse.Namespace) -> BatchLimits:
    """Reads the bounds of a batch from the flags; every beam takes a row."""
    rows, tokens = max(1, args.batch_size // args.num_beams), max(1, args.batch_tokens // args.num_beams)
    return BatchLimits(rows, tokens)
