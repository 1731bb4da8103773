"""Finds the benchmarks, each declared in its scorer's module, and prints one for a shell script.

`python -m llava.eval.benchmarks pope --eval-dir DIR` prints the assignments that scripts/v1_5/eval/pope.sh reads.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pkgutil import iter_modules

import llava.eval
from llava.command import OneLineParser, parse_and_run
from llava.eval.score.benchmark import ANNOTATIONS, Benchmark

SERVER = "its server; the script writes the submission"

SUBMITTED = (
    Benchmark(
        name="VQAv2",
        script="vqav2",
        folder="vqav2",
        questions="{split}.jsonl",
        images="test2015",
        data="`vqav2/test2015/`",
        measures=SERVER,
        needs={
            "{split}.jsonl": ANNOTATIONS,
            "llava_vqav2_mscoco_test2015.jsonl": ANNOTATIONS,
            "test2015": "http://images.cocodataset.org/zips/test2015.zip, unpacked in {dir}",
        },
        split="llava_vqav2_mscoco_test-dev2015",
    ),
    Benchmark(
        name="VizWiz",
        script="vizwiz",
        folder="vizwiz",
        questions="llava_test.jsonl",
        images="test",
        data="`vizwiz/test/`",
        measures=SERVER,
        needs={
            "llava_test.jsonl": ANNOTATIONS,
            "test": "the test images of https://vizwiz.org/tasks-and-datasets/vqa/, as {dir}/test",
        },
    ),
    Benchmark(
        name="MM-Vet",
        script="mmvet",
        folder="mm-vet",
        questions="llava-mm-vet.jsonl",
        images="images",
        data="`mm-vet/`: `images/` of its release",
        measures=SERVER,
        needs={
            "llava-mm-vet.jsonl": ANNOTATIONS,
            "images": "https://github.com/yuweihao/MM-Vet/releases/download/v1/mm-vet.zip, its images as {dir}/images",
        },
        runner="model_vqa",
    ),
)
"""Benchmarks that a server scores."""


def find_benchmarks() -> dict[str, Benchmark]:
    """Finds all benchmarks by script: the BENCHMARK of each module `llava.eval.eval_*`, and `SUBMITTED`."""
    names = sorted(module.name for module in iter_modules(llava.eval.__path__) if module.name.startswith("eval_"))
    declared = [import_module(f"llava.eval.{name}").BENCHMARK for name in names]
    return {benchmark.script: benchmark for benchmark in (*declared, *SUBMITTED)}


def print_benchmark(args: argparse.Namespace) -> None:
    """Prints the benchmark that the flags name."""
    benchmarks = find_benchmarks()
    if args.name not in benchmarks:
        raise ValueError(f"there is no benchmark {args.name!r}; allowed are {', '.join(benchmarks)}")
    print(benchmarks[args.name].to_shell(args.eval_dir, args.folder, args.split))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = OneLineParser(prog="benchmarks", description="Print a benchmark's paths and flags for a shell script.")
    parser.add_argument("name", help="name of its script, such as pope")
    parser.add_argument("--eval-dir", default="./playground/data/eval", help="folder of the data (%(default)s)")
    parser.add_argument("--folder", help="the benchmark's folder in it (default: the declared one)")
    parser.add_argument("--split", help="the split (default: the declared one)")
    return parse_and_run(parser, print_benchmark, argv)


if __name__ == "__main__":
    sys.exit(main())
