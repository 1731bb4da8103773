"""Answers while they grow: their text, their visual tokens and their times."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from llava.model.vision.prepared_image import PreparedImage
from llava.serve.web.backend import AnswerPiece
from llava.serve.web.controls import CLIP, QLIP, QUESTION
from llava.serve.web.session import BROKEN_OFF, CUT
from llava.serve.web.toasts import replace_surrogates
from llava.serve.web.views import Cost, compare_body

SUBTITLES = {CLIP: "uniform grid", QLIP: "quadtree", QUESTION: "quadtree, split where the question attends to"}

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
