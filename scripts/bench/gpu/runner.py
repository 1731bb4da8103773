"""Times the batch runner against one question at a time, with a model of 7B's shape.

Pictures are prepared by worker processes, which wait until the measurement begins, as in `scripts.bench.batch`.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from llava.eval.run.answers.answer_file import AnswerFile
from llava.eval.run.batching import BatchLimits
from llava.eval.run.inputs.pictures import Preparer, prepare_ahead
from llava.eval.run.inputs.questions import Question, read_lines
from llava.eval.run.runner import WINDOW, Runner, list_pictures
from llava.serve.engine import ChatEngine
from llava.serve.engine.params import Sampling
from scripts.bench.batch import TEXTS
from scripts.bench.batch_ways import Gated, one_at_a_time, run_batches
from scripts.bench.gpu.models import build_engine, filled, write_pictures
from scripts.bench.gpu.parts import Row, report_each
from scripts.bench.gpu.timing import median_ratio

TOKENS = 576
SIZE = 672
NEW_TOKENS = 16
QUESTIONS = 64
ALONE = 6
"""Questions that are asked one at a time; a rate needs no more."""
PER_PICTURE = (1, 6)
WORKERS = max(1, min(4, (os.cpu_count() or 1) - 1))
READY_TIMEOUT = 90.0


def write_questions(folder: Path, per_picture: int, count: int = QUESTIONS) -> list[Question]:
    """Writes pictures and a question file, and reads it."""
    pictures = write_pictures(folder, SIZE, -(-count // per_picture))
    rows = [
        {"question_id": i, "image": pictures[i // per_picture].name, "text": TEXTS[i % len(TEXTS)]}
        for i in range(count)
    ]
    file = folder / f"{per_picture}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_lines(file, folder)


@dataclass
class Run:
    """A run of the runner whose workers have started and wait."""

    gate: Path
    workers: int
    ready: Iterator[Any]

    @classmethod
    def start(cls, questions: list[Question], preparer: Preparer, limits: BatchLimits, gate: Path) -> Run:
        """Starts the workers."""
        gate.mkdir()
        pictures = list_pictures(questions, limits)
        ready = prepare_ahead(Gated(preparer, gate), pictures, WORKERS, ahead=WINDOW * limits.rows)
        return cls(gate, min(WORKERS, len(pictures)), ready)

    def wait(self) -> None:
        """Waits until the workers are up.

        Raises:
            TimeoutError: they are not within READY_TIMEOUT seconds.
        """
        deadline = time.monotonic() + READY_TIMEOUT
        while len(list(self.gate.iterdir())) < self.workers:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the {self.workers} workers are not up after {READY_TIMEOUT:g} s")
            time.sleep(0.01)


def measure(engine: ChatEngine, runner: Runner, questions: list[Question], runs: list[Run], folder: Path) -> Row:
    """Times both ways in turns; computes their questions per second and how often their answers are equal."""
    alone, together, same = [], [], []
    for run in runs:
        run.wait()
        start = time.perf_counter()
        first = one_at_a_time(engine, questions[:ALONE], NEW_TOKENS)
        alone.append(ALONE / (time.perf_counter() - start))
        start = time.perf_counter()
        (run.gate / "go").touch()
        second = run_batches(runner, questions, run.ready, AnswerFile(folder / f"{run.gate.name}-answers.jsonl"))
        together.append(len(questions) / (time.perf_counter() - start))
        same += [one == other for one, other in zip(first, second[:ALONE], strict=True)]
    return {
        "questions": len(questions),
        "turns": len(runs),
        "alone_per_second": statistics.median(alone),
        "runner_per_second": statistics.median(together),
        "ratio": median_ratio(together, alone),
        "same_answers": sum(same) / len(same),
    }


def run(model: str, device: str, turns: int) -> int:
    """Reports a row for each number of questions to a picture; returns the number that failed."""
    engine = build_engine(model, device, filled(TOKENS))
    limits = BatchLimits()
    runner = Runner(engine, Sampling(0.0, max_new_tokens=NEW_TOKENS), limits=limits)
    preparer = Preparer.of(engine.model.get_vision_tower())
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        asked = {per_picture: write_questions(folder, per_picture) for per_picture in PER_PICTURE}
        runs = {
            per_picture: [
                Run.start(questions, preparer, limits, folder / f"{per_picture}-{turn}") for turn in range(turns)
            ]
            for per_picture, questions in asked.items()
        }  # all at once, and before any measurement: they take seconds to start
        for waiting in runs.values():
            for each in waiting:
                each.wait()
        warm = asked[PER_PICTURE[0]][: limits.rows]
        one_at_a_time(engine, warm[:1], NEW_TOKENS)
        run_batches(runner, warm, map(preparer, list_pictures(warm, limits)), AnswerFile(folder / "warm.jsonl"))
        return report_each(
            (f"{per_picture} to a picture", partial(measure, engine, runner, questions, runs[per_picture], folder))
            for per_picture, questions in asked.items()
        )
