"""Simulates replicas behind Ray Serve's router: `python -m scripts.simulate_fleet --times FILE --rate 20 --replicas 4`.

Stage times come from a file of measurements (docs/SCALING.md has its format; `python -m scripts.fleet.measure` makes
one), requests from a Poisson process or a trace. Prints latencies and where requests waited; with `--p95` the fewest
replicas that answer in time, for each budget of `--budgets`. Nothing is measured here.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

from llava.command import OneLineParser, integer, parse_and_run, real
from scripts.bench.pictures import read_size
from scripts.fleet.replica import Batching, Limits
from scripts.fleet.simulation import Outcome, Routing, fewest_replicas, simulate, summarise
from scripts.fleet.stages import Request, StageTimes, read_times
from scripts.fleet.traffic import Mix, draw_requests, read_trace

MIX = Mix()
LIMITS = Limits()
HEAD = (
    "  tokens  replicas  most/s each  answers/s  refused  first token p50    p95  whole p95"
    "  waits: thread  model  busy: threads  model"
)


def read_stage(text: str) -> tuple[str, float]:
    """Reads STAGE=SECONDS.

    Raises:
        argparse.ArgumentTypeError: a name is not a stage, or a value not a number.
    """
    name, _, value = text.partition("=")
    known = [field.name for field in fields(StageTimes)]
    if name not in known:
        raise argparse.ArgumentTypeError(f"{name!r} is not a stage; allowed are {', '.join(known)}")
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r} is not a number of seconds") from None


def read_budget(text: str) -> int | str:
    """Reads a budget of QLIP, or "fixedN": N tokens for every image.

    Raises:
        argparse.ArgumentTypeError: it is neither.
    """
    if not re.fullmatch(r"(fixed)?[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a budget; write a number of tokens, or fixed576")
    return text if text.startswith("fixed") else int(text)


def make_parser() -> OneLineParser:
    """Builds the parser."""
    parser = OneLineParser(prog="simulate_fleet", description="Simulates replicas from measured stage times.")
    parser.add_argument("--times", type=Path, metavar="FILE", help="measured stage times")
    parser.add_argument(
        "--set", type=read_stage, nargs="+", default=[], metavar="STAGE=SECONDS", help="set or change some of them"
    )
    wanted = parser.add_mutually_exclusive_group()
    wanted.add_argument("--replicas", type=integer(), default=2, help="how many there are (%(default)s)")
    wanted.add_argument(
        "--p95", type=real(above=True), metavar="SECONDS", help="find the fewest replicas with this time to first token"
    )
    parser.add_argument("--rate", type=real(above=True), default=1.0, help="requests per second (%(default)s)")
    parser.add_argument("--requests", type=integer(), default=2000, help="how many are drawn (%(default)s)")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="JSON lines of requests instead of drawn ones")
    parser.add_argument("--sizes", type=read_size, nargs="+", default=MIX.sizes, metavar="WxH", help="of images")
    parser.add_argument(
        "--budgets",
        type=read_budget,
        nargs="+",
        default=[MIX.budget],
        metavar="N",
        help="tokens of an image, each in turn",
    )
    parser.add_argument("--text", type=integer(0), default=MIX.text, help="text tokens of a prompt (%(default)s)")
    parser.add_argument("--answers", type=integer(), nargs="+", default=MIX.answers, help="tokens of answers")
    parser.add_argument("--slots", type=integer(), default=LIMITS.slots, help="answers at a time (%(default)s)")
    parser.add_argument(
        "--preparers", type=integer(), default=LIMITS.preparers, help="threads for images (%(default)s)"
    )
    parser.add_argument("--waiting", type=integer(), default=LIMITS.waiting, help="most that wait (%(default)s)")
    parser.add_argument("--batching", choices=get_args(Batching), default=LIMITS.batching)
    parser.add_argument(
        "--join-tokens",
        type=integer(),
        default=LIMITS.join_tokens,
        help="most tokens of joining requests between two steps, continuous batching (%(default)s)",
    )
    parser.add_argument(
        "--batch-tokens",
        type=integer(),
        default=LIMITS.batch_tokens,
        help="most answers times tokens of the longest, continuous batching (%(default)s)",
    )
    parser.add_argument("--routing", choices=get_args(Routing), default="two_choices")
    parser.add_argument("--seed", type=int, default=0, help="of requests and routing (%(default)s)")
    return parser


def run(args: argparse.Namespace) -> None:
    """Simulates each budget and prints a table.

    Raises:
        ValueError: there are no stage times, or a file is not what it should be.
    """
    if args.times is None and not args.set:
        raise ValueError("there are no stage times; name a file of measured ones with --times, or give --set")
    times = replace(read_times(args.times) if args.times else StageTimes(), **dict(args.set))
    if times == StageTimes():
        raise ValueError("all stage times are 0; measure them by python -m scripts.fleet.measure")
    if args.trace is not None:
        check_trace_flags(args)
    limits = Limits(args.slots, args.preparers, args.waiting, args.batching, args.join_tokens, args.batch_tokens)
    print(HEAD)
    for budget in args.budgets if args.trace is None else [None]:
        requests = make_requests(args, budget)
        count = args.replicas
        if args.p95 is not None:
            count = find_fewest(requests, times, limits, args)
        found = summarise(simulate(requests, times, count, limits, args.routing, args.seed))
        visual = sum(request.visual for request in requests) / len(requests)
        mean = Request(0.0, *(sum(column) / len(requests) for column in zip(*map(_sizes, requests), strict=True)))
        most = times.most_per_second(replace(mean, answer=round(mean.answer)), limits.slots, limits.preparers)
        label = budget if isinstance(budget, str) else f"{visual:.0f}"
        print(format_row(label, count, most, found))


def check_trace_flags(args: argparse.Namespace) -> None:
    """Checks that no flag describes requests to draw, beside a trace that holds them.

    Raises:
        ValueError: one does.
    """
    defaults = make_parser().parse_args([])
    for name in ("rate", "requests", "sizes", "budgets", "text", "answers"):
        if getattr(args, name) != getattr(defaults, name):
            raise ValueError(f"--{name} is for requests that are drawn; --trace holds its own: leave one of them out")


def _sizes(request: Request) -> tuple[float, ...]:
    return request.megapixels, request.visual, request.text, request.answer


def make_requests(args: argparse.Namespace, budget: Any) -> list[Request]:
    """Reads the trace, or draws requests of one budget; arrivals and answers are the same for every budget."""
    if args.trace is not None:
        return read_trace(args.trace)
    fixed = int(budget.removeprefix("fixed")) if isinstance(budget, str) else MIX.fixed
    mix = Mix(args.sizes, None if isinstance(budget, str) else budget, fixed, MIX.patch, args.text, args.answers)
    return draw_requests(mix, args.rate, args.requests, args.seed)


def find_fewest(requests: Sequence[Request], times: StageTimes, limits: Limits, args: argparse.Namespace) -> int:
    """Finds the fewest replicas that refuse nothing and whose p95 to the first token is at most `--p95`.

    Raises:
        ValueError: no number of replicas is enough.
    """

    def in_time(count: int) -> bool:
        found = summarise(simulate(requests, times, count, limits, args.routing, args.seed))
        return not found.refused and found.first_p95 <= args.p95

    if (count := fewest_replicas(in_time)) is None:
        raise ValueError(f"no number of replicas answers within {args.p95:g} s; a request alone takes longer")
    return count


def format_row(tokens: str, replicas: int, most: float, found: Outcome) -> str:
    """Formats one line of the table."""
    return (
        f"{tokens:>8}  {replicas:8d}  {most:11.2f}  {found.per_second:9.2f}  {found.refused:7d}"
        f"  {found.first_p50:15.3f}  {found.first_p95:5.3f}  {found.whole_p95:9.3f}"
        f"  {found.wait_to_prepare:13.3f}  {found.wait_for_model:5.3f}"
        f"  {found.preparing_busy:14.0%}  {found.model_busy:5.0%}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    return parse_and_run(make_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
