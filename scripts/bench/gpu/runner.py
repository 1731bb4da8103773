"""Times the batch runner against one question at a time, with a model of 7B's shape.

The runner's time includes the preparing of its images and the start of its workers, as in `scripts.bench.batch`.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

from llava.eval.run.answers.answer_file import AnswerFile
from llava.eval.run.batching import BatchLimits
from llava.eval.run.inputs.preparation import prepare_ahead
from llava.eval.run.inputs.questions import Question, read_lines
from llava.eval.run.runner import Runner
from llava.eval.run.windows import WINDOW, list_sources
from llava.model.vision.preparer import Preparer
from llava.serve.engine import ChatEngine
from llava.serve.engine.params import Sampling
from scripts.bench.batch import TEXTS
from scripts.bench.batch_ways import one_at_a_time, run_batches
from scripts.bench.gpu.models import build_engine, filled, write_pictures
from scripts.bench.gpu.parts import Row, report_each
from scripts.bench.gpu.timing import median_ratio

TOKENS = 576
SIZE = 672
NEW_TOKENS = 16
QUESTIONS = 64
ALONE = 6
"""Questions that are asked one at a time; a rate needs no more."""
PER_IMAGE = (1, 6)
WORKERS = max(1, min(4, (os.cpu_count() or 1) - 1))


def write_questions(folder: Path, per_image: int, count: int = QUESTIONS) -> list[Question]:
    """Writes images and a question file, and reads it."""
    images = write_pictures(folder, SIZE, -(-count // per_image))
    rows = [
        {"question_id": i, "image": images[i // per_image].name, "text": TEXTS[i % len(TEXTS)]} for i in range(count)
    ]
    file = folder / f"{per_image}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_lines(file, folder)


def measure(
    engine: ChatEngine, runner: Runner, preparer: Preparer, questions: list[Question], turns: int, folder: Path
) -> Row:
    """Times both ways in turns; computes their questions per second and how often their answers are equal.

    Args:
        engine: asks one question at a time.
        runner: asks them in batches.
        preparer: prepares the runner's images; the time that this and its workers' start take counts.
        questions: of both ways; the first `ALONE` of them are asked one at a time.
        turns: number of measurements.
        folder: an empty one, for answers files.
    """
    sources, ahead = list_sources(questions, runner.limits), WINDOW * runner.limits.rows
    alone, together, same = [], [], []
    for turn in range(turns):
        start = time.perf_counter()
        first = one_at_a_time(engine, questions[:ALONE], NEW_TOKENS)
        alone.append(ALONE / (time.perf_counter() - start))
        start = time.perf_counter()
        ready = prepare_ahead(preparer, sources, WORKERS, ahead)
        second = run_batches(runner, questions, ready, AnswerFile(folder / f"{turn}.jsonl"))
        together.append(len(questions) / (time.perf_counter() - start))
        same += [one == other for one, other in zip(first, second[:ALONE], strict=True)]
    return {
        "questions": len(questions),
        "turns": turns,
        "alone_per_second": statistics.median(alone),
        "runner_per_second": statistics.median(together),
        "ratio": median_ratio(together, alone),
        "same_answers": sum(same) / len(same),
    }


def run(model: str, device: str, turns: int) -> int:
    """Reports a row for each number of questions to an image; returns the number that failed."""
    engine = build_engine(model, device, filled(TOKENS))
    limits = BatchLimits()
    runner = Runner(engine, Sampling(0.0, max_new_tokens=NEW_TOKENS), limits=limits)
    preparer = Preparer.of(engine.model.get_vision_tower())
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        asked = {per_image: write_questions(folder, per_image) for per_image in PER_IMAGE}
        warm = asked[PER_IMAGE[0]][: limits.rows]
        one_at_a_time(engine, warm[:1], NEW_TOKENS)
        run_batches(runner, warm, map(preparer, list_sources(warm, limits)), AnswerFile(folder / "warm.jsonl"))
        for per_image in PER_IMAGE:
            (folder / str(per_image)).mkdir()
        return report_each(
            (
                f"{per_image} to a picture",
                partial(measure, engine, runner, preparer, questions, turns, folder / str(per_image)),
            )
            for per_image, questions in asked.items()
        )
