"""Makes the tables and figures of docs/RESULTS.md from the answers that `run` kept.

`python -m scripts.bench.evidence.report --answers-files evidence/*.jsonl` writes the table of each experiment between
its marks `<!-- NAME -->` and `<!-- end NAME -->`, and the figures. Cells without answers are "not measured". README's
table and the table of claims come from `claims.json`; `--only-claims` writes these alone, `--only EXPERIMENT ...` the
tables of some experiments, with "sizes" its two figures as well.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.command import OneLineParser, parse_and_run
from scripts.bench.evidence.answering.experiments import EXPERIMENTS
from scripts.bench.evidence.answering.flags import add_answers_flags, add_published_split_flag, read_answers
from scripts.bench.evidence.claims.published import read_claims
from scripts.bench.evidence.claims.tables import claim_parts
from scripts.bench.evidence.pages.fill import fill_page


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="report", description="Fill the tables and figures of docs/RESULTS.md.")
    add_answers_flags(parser)
    add_published_split_flag(parser)
    parser.add_argument("--document", type=Path, default=Path("docs/RESULTS.md"), help="file to fill")
    parser.add_argument("--figures", type=Path, default=Path("docs/results"), help="folder of its figures")
    parser.add_argument("--readme", type=Path, default=Path("README.md"), help="file with the headline table to fill")
    parser.add_argument("--only-claims", action="store_true", help="fill the tables of claims alone; reads no answers")
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, help="fill the tables of these experiments alone")
    parser.add_argument("--print", action="store_true", help="print the tables, write nothing")
    return parse_and_run(parser, run, argv)


def run(options: argparse.Namespace) -> None:
    """Writes the tables and figures, or prints the tables.

    Raises:
        FileNotFoundError: a file of answers is missing.
        ValueError: the document has a mark without a part.
    """
    if options.only_claims:
        fill_claims(options)
        return
    from playground.questions import V_STAR
    from scripts.bench.evidence.pages.figures import position_figure, size_figure, token_figure
    from scripts.bench.evidence.pages.tables import tables

    answers = read_answers(options)
    parts = tables(answers) | claim_parts(read_claims())
    if options.only:
        parts = {mark: part for mark, part in parts.items() if mark.partition(":")[0].split(" by ")[0] in options.only}
    if options.print:
        for name, part in parts.items():
            print(f"\n## {name}\n\n{part}")
        return
    fill_page(options.document, parts, partly=bool(options.only))
    if options.only:
        print(f"filled {options.document}: {', '.join(parts)}")
    else:
        fill_claims(options)
        token_figure(answers, options.figures / "tokens.svg")
        position_figure(answers, options.figures / "positions.svg")
        print(f"{options.figures}: tokens.svg, positions.svg")
    if not options.only or "sizes" in options.only:
        size_figure(answers, V_STAR, "V* (%)", options.figures / "sizes.svg")
        size_figure(answers, ("count",), "counting (%)", options.figures / "counting.svg")
        print(f"{options.figures}: sizes.svg, counting.svg")


def fill_claims(options: argparse.Namespace) -> None:
    """Writes the tables of claims into both pages, or prints them."""
    parts = claim_parts(read_claims())
    if options.print:
        print("\n\n".join(parts.values()))
        return
    for page in (options.document, options.readme):
        fill_page(page, parts, partly=True)
    print(f"filled {options.document} and {options.readme}")


if __name__ == "__main__":
    sys.exit(main())
