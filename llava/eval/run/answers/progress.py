"""The progress bar of a run over a question file."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tqdm import tqdm

from llava.eval.run.answers.jsonl import Row


class Progress:
    """Shows speed, tokens saved against the uniform grid, and the time left, after the first two seconds."""

    def __init__(self, total: int, show: bool) -> None:
        every = 0.1 if sys.stderr.isatty() else 30.0  # a log file needs no animation
        self.bar = tqdm(total=total, unit="question", disable=not show, mininterval=every, smoothing=0.05, delay=2)
        self.images: set[str] = set()
        self.tokens = self.uniform = 0

    def add(self, rows: Sequence[Row]) -> None:
        """Counts rows of the answers file."""
        answered = [row["metadata"] for row in rows if "text" in row]
        self.tokens += sum(metadata["visual_tokens"] for metadata in answered)
        self.uniform += sum(metadata["uniform_tokens"] for metadata in answered)
        self.images |= {metadata["image"] for metadata in answered if metadata["image"] is not None}
        seconds = self.bar.format_dict["elapsed"]
        if self.uniform and seconds:
            speed, saved = len(self.images) / seconds, 1 - self.tokens / self.uniform
            self.bar.set_postfix_str(f"{speed:.2f} images/s, {saved:.0%} tokens saved", refresh=False)
        self.bar.update(len(rows))

    def close(self) -> None:
        """Stops the bar and leaves it on the screen."""
        self.bar.close()
