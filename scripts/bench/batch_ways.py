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

import torch

from llava.eval.run.answers.answer_file import AnswerFile
from llava.eval.run.batching import BatchLimits
from llava.eval.run.generate import prompt_ids
from llava.eval.run.inputs.preparation import prepare_ahead
from llava.eval.run.inputs.questions import Question, chunk, read_lines
from llava.eval.run.runner import Runner
from llava.eval.run.windows import WINDOW, list_sources
from llava.images import load_image
from llava.model.builder import load_pretrained_model
from llava.model.vision.preparer import Preparer
from llava.serve.engine.chat_engine import ChatEngine
from llava.serve.engine.detokenize import until_stop
from llava.serve.engine.params import Sampling
from llava.serve.engine.prompting import separators


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
    """CPU and memory that this process and the workers that have ended have used so far."""

    cpu: float
    """Seconds of all cores."""
    memory: float
    """Highest resident memory of this process, in MiB."""
    worker_memory: float
    """Highest resident memory of the largest worker, in MiB; 0 where none has run."""

    @classmethod
    def now(cls) -> Usage:
        """Reads the current figures; on Linux and macOS."""
        unit = 2**20 if sys.platform == "darwin" else 2**10
        own, workers = (
            resource.getrusage(who).ru_maxrss / unit for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        return cls(sum(os.times()[:4]), own, workers)


def serve(options: argparse.Namespace) -> None:
    """Loads a checkpoint, warms up, then measures a way once for every line of stdin."""
    engine = ChatEngine(*load_pretrained_model(options.checkpoint, device=options.device))
    path = Path(options.questions)
    questions = read_lines(path, path.parent)
    questions = [questions[i] for i in chunk(questions, *options.share)]
    limits = BatchLimits(options.batch_size)
    runner = Runner(engine, Sampling(0.0, max_new_tokens=options.new_tokens), limits=limits)
    preparer = Preparer.of(engine.model.get_vision_tower())
    one_at_a_time(engine, questions[:1], options.new_tokens)
    with tempfile.TemporaryDirectory() as scratch:
        print("ready", flush=True)
        for turn, _ in enumerate(sys.stdin):
            file = AnswerFile(Path(scratch) / f"{turn}.jsonl")
            before, start = Usage.now(), time.perf_counter()
            if options.way == "runner":
                sources = list_sources(questions, limits)
                ready = prepare_ahead(preparer, sources, options.workers, ahead=WINDOW * limits.rows)
                answers = run_batches(runner, questions, ready, file)
            else:
                answers = one_at_a_time(engine, questions, options.new_tokens)
            seconds = time.perf_counter() - start
            used = Usage.now()
            figures = {"seconds": seconds, "cpu": used.cpu - before.cpu, "memory": [used.memory, used.worker_memory]}
            print(json.dumps({**figures, "answers": answers}), flush=True)
