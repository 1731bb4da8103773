"""One answer while it grows: its text, its visual tokens and its times."""

from __future__ import annotations

import time
from dataclasses import replace

from llava.serve.web.backend import Piece
from llava.serve.web.toasts import replace_surrogates
from llava.serve.web.views import Cost


class AnswerProgress:
    """Collects the text and cost of one answer from its pieces; the clock starts when it is created."""

    def __init__(self, tokens: int) -> None:
        """
        Args:
            tokens: Number of visual tokens, until the model reports its own.
        """
        self.text, self.cost = "", Cost(tokens)
        self._start = time.perf_counter()

    def add(self, piece: Piece) -> None:
        """Adds a piece."""
        if piece.visual_tokens is not None:
            self.cost = replace(self.cost, tokens=piece.visual_tokens)
        if piece.text and self.cost.first is None:
            self.cost = replace(self.cost, first=time.perf_counter() - self._start)
        self.text += replace_surrogates(piece.text)

    def end(self) -> None:
        """Stops the clock."""
        self.cost = replace(self.cost, total=time.perf_counter() - self._start)
