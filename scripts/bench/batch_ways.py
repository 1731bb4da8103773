"""The two ways that `batch.py` compares, and the process that measures one: once for every line of input."""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from llava.eval.run.answer_file import AnswerFile
from llava.eval.run.batching import BatchLimits
from llava.eval.run.generate import prompt_ids
from llava.eval.run.pictures import Preparer, prepare_ahead
from llava.eval.run.questions import Question, read_lines
from llava.eval.run.runner import WINDOW, Runner, list_pictures
from llava.images import load_image
from llava.model.builder import load_pretrained_model
from llava.serve.engine.chat_engine import ChatEngine
from llava.serve.engine.detokenize import until_stop
from llava.serve.engine.params import Sampling
from llava.serve.engine.prompting import separators


@dataclass(frozen=True)
class Gated:
    """Makes started workers wait until the measurement begins."""

    prepare: Preparer
    folder: Path
    """Where each started worker leaves a file and waits for one named "go"."""

    def __call__(self, source: Any) -> Any:
        """Waits for the file "go", then prepares a picture."""
        (self.folder / str(os.getpid())).touch()
        while not (self.folder / "go").exists():
            time.sleep(0.002)
        return self.prepare(source)


def one_at_a_time(engine: ChatEngine, questions: Sequence[Question], new_tokens: int) -> list[str]:
    """Answers as LLaVA's model_vqa does."""
    stops, answers = separators(engine.new_conversation()), []
    for question in questions:
        pixels = engine.prepare_images([load_image(str(question.image))])
        ids = prompt_ids(engine, question.text)[None].to(engine.model.device)
        with torch.inference_mode():
            said = engine.model.generate(
                ids,
                images=pixels,
                do_sample=False,
                temperature=None,
                top_p=None,
                num_beams=1,
                max_new_tokens=new_tokens,
                pad_token_id=engine.padding_id,
                use_cache=True,
            )
        text = engine.tokenizer.batch_decode(said, skip_special_tokens=True)[0]
        answers.append("".join(until_stop([text], stops)).strip())
    return answers


def run_batches(runner: Runner, asked: Sequence[Question], ready: Iterator[Any], file: AnswerFile) -> list[str]:
    """Answers as `llava.eval.run.batch_run` does."""
    found: dict[int, str] = {}
    for outcomes in runner.run(asked, ready):
        rows = [{"text": str(outcome.text), "metadata": {"index": outcome.question.index}} for outcome in outcomes]
        file.append(rows)
        found.update((outcome.question.index, str(outcome.text)) for outcome in outcomes)
    return [found[index] for index in sorted(found)]


@dataclass(frozen=True)
class Usage:
    """CPU and memory that this process and its workers have used so far."""

    cpu: float
    """Seconds of all cores."""
    memory: float
    """Highest resident memory of this process, in MiB."""
    worker_memory: float
    """Resident memory of the largest worker, in MiB."""

    @classmethod
    def now(cls) -> Usage:
        """Reads the current figures; on Linux and macOS."""
        workers = psutil.Process().children(recursive=True)
        times = [psutil.Process().cpu_times(), *(worker.cpu_times() for worker in workers)]
        unit = 2**20 if sys.platform == "darwin" else 2**10
        return cls(
            sum(time.user + time.system for time in times),
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit,
            max((worker.memory_info().rss / 2**20 for worker in workers), default=0.0),
        )


def serve(options: argparse.Namespace) -> None:
    """Loads a checkpoint, warms up, then measures a way once for every line of stdin."""
    engine = ChatEngine(*load_pretrained_model(options.checkpoint, device=options.device))
    path = Path(options.questions)
    questions = read_lines(path, path.parent)
    limits = BatchLimits(options.batch_size)
    runner = Runner(engine, Sampling(0.0, max_new_tokens=options.new_tokens), limits=limits)
    preparer = Preparer.of(engine.model.get_vision_tower())
    one_at_a_time(engine, questions[:1], options.new_tokens)
    with tempfile.TemporaryDirectory() as scratch:
        print("ready", flush=True)
        for turn, _ in enumerate(sys.stdin):
            file, gate = AnswerFile(Path(scratch) / f"{turn}.jsonl"), Path(scratch) / f"{turn}"
            gate.mkdir()
            ready: Iterator[Any] = iter(())
            if options.way == "runner":
                pictures = list_pictures(questions, limits)
                ready = prepare_ahead(Gated(preparer, gate), pictures, options.workers, ahead=WINDOW * limits.rows)
                while len(list(gate.iterdir())) < min(options.workers, len(pictures)):
                    time.sleep(0.01)
            before, start = Usage.now(), time.perf_counter()
            (gate / "go").touch()
            if options.way == "runner":
                answers = run_batches(runner, questions, ready, file)
            else:
                answers = one_at_a_time(engine, questions, options.new_tokens)
            seconds = time.perf_counter() - start
            used = Usage.now()
            del ready
            figures = {"seconds": seconds, "cpu": used.cpu - before.cpu, "memory": [used.memory, used.worker_memory]}
            print(json.dumps({**figures, "answers": answers}), flush=True)
