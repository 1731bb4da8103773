"""Compares the simulation of a fleet with real replicas: `python -m scripts.bench.fleet [--replicas 2] [--rate 4]`.

Every replica is a process with one `ChatEngine`; requests come to them in turns, at the times of a Poisson process.
While they run, each replica times its stages: preparing images, the vision tower, prompts, and steps of one token. What
a lone request takes beside these is measured before, and counted as preparing. The simulation gets times fitted to all
this, and the same requests with the answers' real lengths. The processes share this machine's cores, each computing in
its part of them; no HTTP. With `--paced` the model's thread also waits, as it would for a GPU that takes longer than
this small model needs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, get_args

from llava.command import OneLineParser, integer, parse_and_run, real
from playground.presets import PRESETS
from playground.questions import WORDINGS
from scripts.bench.machine import machine_line
from scripts.fleet.measure import fit
from scripts.fleet.replica import Batching, Limits
from scripts.fleet.simulation import simulate
from scripts.fleet.stages import Request, StageTimes
from scripts.fleet.traffic import Mix, draw_requests
from scripts.markdown_table import table_head, table_row
from scripts.percentiles import percentile

if TYPE_CHECKING:
    from llava.serve.engine import ChatEngine

KINDS = ("listing", "count", "colour")
"""Questions with long and short answers, in turn."""

STAGES = ("prepare", "encode", "prefill", "decode")
PACE = StageTimes(
    encode=0.06, encode_per_token=0.02, prefill=0.05, prefill_per_token=2e-4, decode=0.05, decode_per_row=2e-3
)
"""What `--paced` lets the model's stages take at least, several times what the embedded model needs; tokens of
`encode_per_token` are images here."""

LONE = 12
"""Requests that each replica answers one by one, before those that are compared."""

Samples = dict[str, list[tuple[list[float], float]]]
"""Stage -> (features, seconds) of each time that it ran."""


class StageTimer:
    """Times an engine's stages while it answers, by wrapping the three calls in which it spends its time."""

    def __init__(self, engine: ChatEngine, least: StageTimes) -> None:
        """
        Args:
            engine: what is timed.
            least: seconds that the model's stages take at least; its thread waits, as it would for a GPU.
        """
        self.samples: Samples = {stage: [] for stage in STAGES}
        self._last = 0.0
        """When the model's thread ended its last work."""
        model, vision = engine.model, engine.vision
        forward, see, prepare = model.forward, model.get_vision_tower().forward, vision.prepare

        def timed_prepare(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            prepared = prepare(*args, **options)
            self.samples["prepare"].append(([1.0], time.perf_counter() - start))
            return prepared

        def timed_tower(images: Any, *args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            found = see(images, *args, **options)
            wait_until(start + least.encode + least.encode_per_token * len(images))
            self._last = time.perf_counter()
            self.samples["encode"].append(([1.0, float(len(images))], self._last - start))
            return found

        @wraps(forward)  # `generate` reads its parameters
        def timed_forward(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = forward(*args, **options)
            new = options.get("inputs_embeds")
            new = options["input_ids"] if new is None else new
            rows, length = new.shape[:2]
            prompts = least.prefill + least.prefill_per_token * rows * length
            wait_until(start + (prompts if length > 1 else least.stepping(rows, 0)))
            now = time.perf_counter()
            if length > 1:
                self.samples["prefill"].append(([1.0, float(rows * length)], now - max(start - 0.05, self._last)))
            else:
                context = options["past_key_values"].get_seq_length()
                features = [1.0, float(rows), float(rows * context)]
                self.samples["decode"].append((features, now - max(start - 0.05, self._last)))
            self._last = now
            return result

        vision.prepare, model.forward = timed_prepare, timed_forward
        model.get_vision_tower().forward = timed_tower


def wait_until(moment: float) -> None:
    """Sleeps until a moment of `time.perf_counter`, if it is not over."""
    time.sleep(max(0.0, moment - time.perf_counter()))


def make_question(engine: ChatEngine, number: int) -> tuple[Any, Any]:
    """Makes a request: a conversation and an image."""
    from PIL import Image

    from playground.scenes import scene

    wordings = WORDINGS[KINDS[number % len(KINDS)]]
    asked = engine.question(str(wordings[number % len(wordings)]), 1)
    return asked, Image.fromarray(scene(PRESETS["base"], 4000, number).image)


async def answer(engine: ChatEngine, question: tuple[Any, Any], longest: int) -> dict[str, Any]:
    """Sends one request; returns its size and times in seconds."""
    from llava.serve.engine.params import Sampling

    asked, image = question
    began, first = time.perf_counter(), None
    reply = await engine.asubmit(asked, [image], Sampling(0.0, max_new_tokens=longest))
    async for _ in reply:
        first = first or time.perf_counter()
    ended, usage = time.perf_counter(), reply.usage
    times = {"first": (first or ended) - began, "whole": ended - began}
    return {**times, "tokens": usage.prompt_tokens, "answer": max(1, reply.row.generated)}


async def answer_one_by_one(engine: ChatEngine, timer: StageTimer, questions: Sequence[Any], longest: int) -> float:
    """Computes what a lone request takes until its first token beside the timed stages: the mean, in seconds."""
    rest = []
    for question in questions:
        for seen in timer.samples.values():
            seen.clear()
        first = (await answer(engine, question, longest))["first"]
        stages = (timer.samples[stage] for stage in ("prepare", "encode", "prefill"))
        rest.append(first - sum(seconds for seen in stages for _, seconds in seen))
    for seen in timer.samples.values():
        seen.clear()
    return max(0.0, statistics.mean(rest))


async def answer_in_time(
    engine: ChatEngine, questions: Sequence[Any], arrivals: Sequence[float], start: float, longest: int
) -> list[dict[str, Any]]:
    """Sends requests at their times after `start`, by `time.time`."""

    async def one(question: Any, at: float) -> dict[str, Any]:
        await asyncio.sleep(max(0.0, start + at - time.time()))
        return {"at": at, **await answer(engine, question, longest)}

    return list(await asyncio.gather(*map(one, questions, arrivals)))


def serve_replica(options: dict[str, Any]) -> None:
    """Runs one replica: says that it is ready, reads the time at which to start, and writes what it measured."""
    from llava.model.builder import load_pretrained_model
    from llava.serve.engine import ChatEngine
    from llava.serve.engine.params import EngineLimits
    from llava.utils import demo_model_path

    # The simulation runs every prompt in full, and some questions are asked before those that are compared.
    engine = ChatEngine(
        *load_pretrained_model(options["model"] or demo_model_path(), device="cpu"),
        limits=EngineLimits(max_batch=options["slots"], max_waiting=10**6, max_prefix_mib=0),
    )
    longest, arrivals = options["longest"], options["arrivals"]
    questions = [make_question(engine, options["first"] + number) for number in range(len(arrivals))]
    asyncio.run(answer(engine, questions[0], longest))
    timer = StageTimer(engine, PACE if options["paced"] else StageTimes())
    print("loaded", flush=True)
    sys.stdin.readline()  # all replicas measure at the same time
    rest = asyncio.run(answer_one_by_one(engine, timer, questions[:LONE], longest))
    print("ready", flush=True)
    start = float(sys.stdin.readline())
    jobs = asyncio.run(answer_in_time(engine, questions, arrivals, start, longest))
    engine.close()
    print(json.dumps({"jobs": jobs, "samples": timer.samples, "rest": rest}), flush=True)


def run_replicas(args: argparse.Namespace, arrivals: Sequence[float]) -> list[dict[str, Any]]:
    """Runs real replicas; returns what each measured."""
    fleet = []
    for index in range(args.replicas):
        options = {"model": args.model_path, "slots": args.slots, "longest": args.max_new_tokens}
        options |= {"paced": args.paced, "arrivals": arrivals[index :: args.replicas], "first": 1000 * index}
        command = [sys.executable, "-m", "scripts.bench.fleet", "--serve", json.dumps(options)]
        # Threads of two processes on one core wait for each other, hundreds of times longer than they compute.
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads_of(args.replicas))}
        fleet.append(
            subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
    try:
        for word, line in (("loaded", "go"), ("ready", None)):
            for process in fleet:
                if process.stdout is None or process.stdout.readline() != f"{word}\n":
                    raise RuntimeError("a replica did not start; see its message above")
            for process in fleet:
                print(line or time.time() + 1, file=process.stdin, flush=True)
        return [json.loads(process.stdout.readline()) for process in fleet if process.stdout]
    finally:
        for process in fleet:
            process.communicate()


def threads_of(replicas: int) -> int:
    """Computes the threads in which each replica computes: its part of the cores, as Ray gives it."""
    return max(1, (os.cpu_count() or 1) // replicas)


def fit_times(found: Sequence[dict[str, Any]]) -> StageTimes:
    """Fits the stages' times to what replicas measured; encoding by images, which count as one visual token each."""
    samples = {stage: [sample for each in found for sample in each["samples"][stage]] for stage in STAGES}
    fitted = {stage: fit(*zip(*seen, strict=True)) for stage, seen in samples.items()}
    (prepare,), encode, prefill, decode = (fitted[stage] for stage in STAGES)
    rest = statistics.mean(each["rest"] for each in found)
    return StageTimes(prepare + rest, 0.0, *encode, *prefill, *decode)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="fleet", description="Compares the simulation of a fleet with real replicas.")
    parser.add_argument("--replicas", type=integer(), default=2)
    parser.add_argument("--rate", type=real(above=True), default=4.0, help="requests per second (%(default)s)")
    parser.add_argument("--requests", type=integer(), default=200, help="(%(default)s)")
    parser.add_argument("--slots", type=integer(), default=16, help="answers at a time (%(default)s)")
    parser.add_argument("--max-new-tokens", type=integer(), default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model-path", help="default: the embedded model")
    parser.add_argument(
        "--paced", action="store_true", help="let the model wait as for a GPU, so that busy cores matter little"
    )
    parser.add_argument("--serve", type=json.loads, help=argparse.SUPPRESS)
    return parse_and_run(parser, run, argv)


def run(args: argparse.Namespace) -> None:
    """Runs the replicas, simulates them and prints both."""
    if args.serve:
        serve_replica(args.serve)
        return
    arrivals = [request.at for request in draw_requests(Mix(), args.rate, args.requests, args.seed)]
    found = run_replicas(args, arrivals)
    jobs = sorted((job for each in found for job in each["jobs"]), key=lambda job: job["at"])
    times = fit_times(found)
    fitted = ", ".join(f"{name} {1000 * value:.4g} ms" for name, value in vars(times).items() if value)
    real_row = describe([(job["at"], job["at"] + job["first"], job["at"] + job["whole"]) for job in jobs])
    print(table_head(["", "first token p50, s", "p95", "whole answer p50, s", "p95", "per second"]))
    print(format_row(f"{args.replicas} real replicas", real_row))
    requests = [Request(job["at"], 0.0, 1, job["tokens"] - 1, job["answer"]) for job in jobs]
    for batching in get_args(Batching):
        limits = Limits(args.slots, preparers=8, waiting=10**9, batching=batching)
        fleet = simulate(requests, times, args.replicas, limits, "round_robin")
        row = describe([(job.request.at, job.first_at, job.done_at) for replica in fleet for job in replica.done])
        print(format_row(f"simulated, {batching}", row))
        print(format_row("of the real ones", [mine / theirs for mine, theirs in zip(row, real_row, strict=True)]))
    threads = f"Threads of each replica: {threads_of(args.replicas)}."
    print(f"\n{machine_line(more=f'{threads} Stages as fitted: {fitted}.')}")


def describe(jobs: Sequence[tuple[float, float, float]]) -> list[float]:
    """Computes percentiles of requests' times and their rate, from (arrival, first token, end)."""
    first, whole = sorted(first - at for at, first, _ in jobs), sorted(end - at for at, _, end in jobs)
    rate = len(jobs) / (max(end for _, _, end in jobs) - min(at for at, _, _ in jobs))
    return [*(percentile(times, share) for times in (first, whole) for share in (0.5, 0.95)), rate]


def format_row(name: str, values: Sequence[float]) -> str:
    """Formats a line of the table."""
    return table_row([name, *(f"{value:.3f}" for value in values[:-1]), f"{values[-1]:.2f}"])


if __name__ == "__main__":
    sys.exit(main())
