"""The real worker program around a model that takes its time: `python -m tests.llava.serve.slow_worker` FLAGS.

It says the alphabet over and over, a letter every few milliseconds, until it has given all the tokens it may. Its heart
beats fast.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from llava.serve import model_worker
from llava.serve.engine import ChatEngine
from llava.serve.engine.params import EngineLimits
from llava.serve.workers import heartbeat
from llava.serve.workers.heartbeat import Registration
from tests.llava.serve.fakes import BytesTokenizer, ScriptedModel, SquareProcessor

ALPHABET = "abcdefghijklmnopqrstuvwxyz"
PACE = 0.005  # seconds per letter
HEARTBEAT = 0.5  # seconds


def said(letters: int) -> str:
    """The first letters of the answer."""
    return (ALPHABET * (letters // len(ALPHABET) + 1))[:letters]


class SlowModel(ScriptedModel):
    """Answers all rows of a batch with the alphabet."""

    def generate(
        self,
        input_ids: Tensor,
        *,
        streamer: Any = None,
        stopping_criteria: Any = (),
        max_new_tokens: int = 0,
        **options: Any,
    ) -> Tensor:
        streamer.put(input_ids)
        pace = threading.Event()
        for token in BytesTokenizer.bytes(said(max_new_tokens)):
            pace.wait(PACE)
            streamer.put(torch.full((len(input_ids),), token))
            if all(criterion(input_ids, None).all() for criterion in stopping_criteria):
                break
        return input_ids[:, :0]


def load_slow_engine(args: Any, *, limits: EngineLimits | None = None, **options: Any) -> ChatEngine:
    return ChatEngine(BytesTokenizer(), SlowModel([]), SquareProcessor(), 8192, limits=limits)


def main(argv: Sequence[str] | None = None) -> int:
    model_worker.load_engine = load_slow_engine  # type: ignore[assignment]
    heartbeat.Registration = partial(Registration, interval=HEARTBEAT)  # type: ignore[assignment, misc]
    return model_worker.main(argv)


if __name__ == "__main__":
    sys.exit(main())
