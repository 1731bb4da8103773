"""Answers while they grow: their text, their visual tokens and their times."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TypeVar

from llava.model.vision.prepared_image import PreparedImage
from llava.serve.web.backend import AnswerPiece
from llava.serve.web.controls import CLIP, QLIP, QUESTION
from llava.serve.web.session import BROKEN_OFF, CUT
from llava.serve.web.toasts import replace_surrogates
from llava.serve.web.views import Cost, compare_body

SUBTITLES = {CLIP: "uniform grid", QLIP: "quadtree", QUESTION: "quadtree, split where the question attends to"}

Step = TypeVar("Step")

PERIOD = 0.1
"""Least seconds between two steps of an answer that a page shows. A browser takes 20 to 40 ms of a slow core for each,
whatever it adds."""

EMPTY, FAILED = "no answer", "failed"
"""Marks of a comparison's side without text: the model had nothing to say, or failed."""


class AnswerProgress:
    """Collects the text and cost of one answer from its pieces; the clock starts when it is created."""

    def __init__(self, tokens: int) -> None:
        """
        Args:
            tokens: Number of visual tokens, until the model reports its own.
        """
        self.text, self.cost = "", Cost(tokens)
        self.is_cut = False
        """Whether the answer ended at its greatest length."""
        self._start = time.perf_counter()

    def add(self, piece: AnswerPiece) -> None:
        """Adds a piece."""
        if piece.visual_tokens is not None:
            self.cost = replace(self.cost, tokens=piece.visual_tokens)
        if piece.first_pass is not None:
            self.cost = replace(self.cost, first_pass=piece.first_pass)
        if piece.text and self.cost.first is None:
            self.cost = replace(self.cost, first=time.perf_counter() - self._start)
        self.text += replace_surrogates(piece.text)
        self.is_cut = self.is_cut or piece.finish_reason == "length"

    @property
    def is_done(self) -> bool:
        """Whether the answer has ended by itself."""
        return self.cost.total is not None

    @property
    def end_mark(self) -> str:
        """The mark of an answer that is done: whether it was cut, or is empty."""
        if self.is_cut:
            return CUT
        return "" if self.text.strip() else EMPTY

    def end(self) -> None:
        """Stops the clock."""
        self.cost = replace(self.cost, total=time.perf_counter() - self._start)

    async def follow(self, pieces: AsyncGenerator[AnswerPiece, None]) -> AsyncGenerator[AnswerProgress, None]:
        """Adds pieces as they come and yields after each, and once more at the end. Closing it closes `pieces`."""
        async with aclosing(pieces):
            async for piece in pieces:
                self.add(piece)
                yield self
        self.end()
        yield self


@dataclass
class Comparison:
    """The sides of a comparison, by how the picture is encoded."""

    images: dict[str, PreparedImage] = field(default_factory=dict)
    progress: dict[str, AnswerProgress] = field(default_factory=dict)
    """Progress of the answers that have begun."""
    is_shown: bool = False

    def bodies(self, ended: str = "") -> list[str]:
        """Formats each side's answer and cost as HTML, with the side's own mark.

        Args:
            ended: The mark of sides that are not done, if no more will come; empty while something may.
        """
        sides = []
        for mode, image in self.images.items():
            begun = self.progress.get(mode)
            answer, cost = (None, Cost(image.tokens)) if begun is None else (begun.text.strip(), begun.cost)
            if begun is not None and begun.is_done:
                mark = begun.end_mark
            else:
                mark = FAILED if ended == BROKEN_OFF and not answer else ended
            sides.append(compare_body(mode, SUBTITLES[mode], answer, cost, mark))
        return sides


async def pace(steps: AsyncGenerator[Step, None], period: float = PERIOD) -> AsyncGenerator[Step, None]:
    """Yields the first step at once, and then the latest one at most once a period, and the last one.

    No step waits for another one to come, and the last one that came before `steps` fails is yielded before this fails
    too. Closing this cancels the step that is waited for and closes `steps`.

    Args:
        steps: Each shows all that the ones before it did.
        period: Least seconds between two steps, but for the last one.
    """
    latest, due, has_ended = None, 0.0, False
    clock = asyncio.get_running_loop().time
    coming = asyncio.ensure_future(anext(steps, None))
    try:
        while not has_ended:
            await asyncio.wait((coming,), timeout=None if latest is None else max(0.0, due - clock()))
            has_failed = coming.done() and (coming.cancelled() or coming.exception() is not None)
            has_ended = has_failed or (coming.done() and coming.result() is None)
            if coming.done() and not has_ended:
                latest, coming = coming.result(), asyncio.ensure_future(anext(steps, None))
            if latest is not None and (has_ended or clock() >= due):
                yield latest
                latest, due = None, clock() + period
        coming.result()
    finally:
        coming.cancel()
        try:
            await asyncio.gather(coming, return_exceptions=True)  # also of a step that has failed unseen
        finally:
            await steps.aclose()
