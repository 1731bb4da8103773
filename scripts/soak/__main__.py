"""Checks that the servers survive faults and attacks: `python -m scripts.soak`.

Prints what was promised and what was measured; exits with 1 where they differ.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from llava.command import OneLineParser, real, run_command
from scripts.soak.scale import QUICK, Scale


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="soak", description="Check that the servers survive faults and attacks.")
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--seconds", type=real(1), help=f"length of the attack (default: {Scale.seconds:g})")
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: run(args))


def run(args: argparse.Namespace) -> int:
    """Runs the faults; returns 1 if a promise was broken."""
    from scripts.soak.faults import soak

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # several programs share the cores
    scale = QUICK if args.quick else Scale()
    if args.seconds:
        scale = replace(scale, seconds=args.seconds)
    start = time.monotonic()
    failures = asyncio.run(soak(scale))
    print(f"{len(failures)} promises broken, {time.monotonic() - start:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
